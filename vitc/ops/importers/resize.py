"""Importers of interpolation: linear and separable, so a product with a matrix along each axis."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from vitc.ir.builder import Value
from vitc.ir.op import Array
from vitc.ops.aten import Context, Importer, aten, refuse, size_of

_NAMES = (
    "upsample_bilinear2d",
    "upsample_bicubic2d",
    "_upsample_bilinear2d_aa",
    "_upsample_bicubic2d_aa",
)


def _weights(name: str, size: int, result: int, align_corners: bool) -> Array:
    """[result, size] weights along one axis, read off torch's resizing of the unit vectors."""
    import torch

    overload: Any = getattr(torch.ops.aten, name).vec
    units = torch.eye(size, dtype=torch.float64).reshape(1, 1, size, size)
    resized = overload(units, [result, size], align_corners, None)
    return np.ascontiguousarray(resized[0, 0].numpy())


def _resize(name: str) -> Importer:
    def importer(
        b: Context,
        x: Value,
        size: Sequence[int] | None,
        align_corners: bool,
        scales: Sequence[float] | None,
    ) -> Value:
        refuse(scales is not None, "resizing by factors instead of to a size")
        (rows, columns), sizes = b.shape[2:], x.shape[2:]
        weights = [
            _weights(name, size_of(have, "resized axis"), size_of(wanted, "size"), align_corners)
            for have, wanted in zip(sizes, (rows, columns), strict=True)
        ]
        with b.part("columns"):
            wide = b.linear(x, b.literal(weights[1]))
        with b.part("rows"):
            turned = b.linear(b.permute(wide, (0, 1, 3, 2)), b.literal(weights[0]))
        return b.permute(turned, (0, 1, 3, 2))

    return importer


for _name in _NAMES:
    aten(f"{_name}.vec")(_resize(_name))
