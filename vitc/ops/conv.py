"""Two-dimensional convolution and pooling, channels last."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitc.ir.op import Array, register, require
from vitc.ir.types import Batch, Dim, TensorType, per_image
from vitc.ops.fused import Fused

Pair = tuple[int, int]
Padding = tuple[int, int, int, int]


def _window(size: Dim, kernel: int, stride: int, pads: Pair, dilation: int) -> int:
    require(not isinstance(size, Batch), "a window cannot slide over the batch")
    reach = dilation * (kernel - 1) + 1
    span = per_image((size,)) + sum(pads)
    require(span >= reach, f"a window of {reach} does not fit {span} pixels")
    return (span - reach) // stride + 1


@register
@dataclass(frozen=True)
class Conv2d(Fused):
    """x [B, H, W, C] with w [O, kh, kw, C / groups]: [B, H', W', O], then the steps.

    padding: zeros at (top, bottom, left, right).
    """

    name: ClassVar[str] = "conv2d"
    arity: ClassVar[int] = 2

    stride: Pair = (1, 1)
    padding: Padding = (0, 0, 0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) >= 2, "conv2d takes x and w")
        x, w = types[:2]
        require(x.rank == 4 and w.rank == 4, f"conv2d of x {x} and w {w}")
        out, kh, kw, depth = (per_image((dim,)) for dim in w.shape)
        channels = per_image(x.shape[3:])
        require(
            channels == depth * self.groups,
            f"x {x} has {channels} channels, w takes {depth * self.groups}",
        )
        require(out % self.groups == 0, f"{out} output channels in {self.groups} groups")
        top, bottom, left, right = self.padding
        height = _window(x.shape[1], kh, self.stride[0], (top, bottom), self.dilation[0])
        width = _window(x.shape[2], kw, self.stride[1], (left, right), self.dilation[1])
        return self.finish_types(x.with_shape((x.shape[0], height, width, out)), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        import torch
        import torch.nn.functional as F

        top, bottom, left, right = self.padding
        x = np.pad(arrays[0], ((0, 0), (top, bottom), (left, right), (0, 0)))
        image = torch.tensor(np.transpose(x, (0, 3, 1, 2)))
        weight = torch.tensor(np.transpose(arrays[1], (0, 3, 1, 2)))
        result = F.conv2d(image, weight, None, self.stride, 0, self.dilation, self.groups)
        return self.finish(np.transpose(np.asarray(result), (0, 2, 3, 1)), arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 2 * per_image(results[0].shape) * per_image(types[1].shape[1:]) + self.step_flops(
            results
        )


@register
@dataclass(frozen=True)
class Pool2d(Fused):
    """Maximum or average over windows of x [B, H, W, C].

    kind: "max" or "avg". padding: (top, bottom, left, right); a maximum ignores padded places, an
    average divides by the whole window when `count_padding`, else by the pixels inside.
    """

    name: ClassVar[str] = "pool2d"

    kind: str = "max"
    kernel: Pair = (2, 2)
    stride: Pair = (2, 2)
    padding: Padding = (0, 0, 0, 0)
    count_padding: bool = True

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(self.kind in ("max", "avg"), f"pool2d kind '{self.kind}' is not max or avg")
        require(bool(types) and types[0].rank == 4, "pool2d takes x [B, H, W, C]")
        x = types[0]
        top, bottom, left, right = self.padding
        height = _window(x.shape[1], self.kernel[0], self.stride[0], (top, bottom), 1)
        width = _window(x.shape[2], self.kernel[1], self.stride[1], (left, right), 1)
        return self.finish_types(x.with_shape((x.shape[0], height, width, x.shape[3])), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        x = arrays[0]
        top, bottom, left, right = self.padding
        widths = ((0, 0), (top, bottom), (left, right), (0, 0))
        inside = np.pad(np.ones_like(x), widths)
        if self.kind == "max":
            windows = self._windows(np.pad(x, widths, constant_values=-np.inf))
            return self.finish(windows.max((-2, -1)), arrays)
        total = self._windows(np.pad(x, widths)).sum((-2, -1))
        count = self.kernel[0] * self.kernel[1]
        divisor = count if self.count_padding else self._windows(inside).sum((-2, -1))
        return self.finish(total / divisor, arrays)

    def _windows(self, padded: Array) -> Array:
        windows = np.lib.stride_tricks.sliding_window_view(padded, self.kernel, (1, 2))
        return windows[:, :: self.stride[0], :: self.stride[1]]

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return per_image(results[0].shape) * self.kernel[0] * self.kernel[1] + self.step_flops(
            results
        )
