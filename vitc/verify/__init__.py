"""Verification: a result counts only against timm in float64 on the same weights and images."""

from vitc.verify.redraw import images, redraw
from vitc.verify.reference import eager, reference, relative_error

__all__ = ["eager", "images", "redraw", "reference", "relative_error"]
