"""Importers of ATen calls, one file per op family. Importing this package registers all of them."""

from vitc.ops.importers import conv, linear, movement, norm, pointwise, reduce, resize

__all__ = ["conv", "linear", "movement", "norm", "pointwise", "reduce", "resize"]
