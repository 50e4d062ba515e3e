"""The geometry of sliding windows, as kernels of every target are told it."""

from __future__ import annotations

from dataclasses import dataclass

from vitc.ir.types import Shape, per_image
from vitc.ops import Conv2d, Pool2d


@dataclass(frozen=True)
class Window:
    """Constants of a window over channels-last images; padding at the far ends is implied."""

    height: int
    width: int
    channels: int
    kernel: tuple[int, int]
    stride: tuple[int, int]
    pad_top: int
    pad_left: int
    dilation: tuple[int, int]
    out_height: int
    out_width: int


def window_of(x: Shape, result: Shape, op: Conv2d | Pool2d, kernel: tuple[int, int]) -> Window:
    """The window of `op` over x [B, H, W, C]."""
    height, width, channels = (per_image((dim,)) for dim in x[1:])
    out_height, out_width = (per_image((dim,)) for dim in result[1:3])
    dilation = op.dilation if isinstance(op, Conv2d) else (1, 1)
    return Window(
        height,
        width,
        channels,
        kernel,
        op.stride,
        op.padding[0],
        op.padding[2],
        dilation,
        out_height,
        out_width,
    )
