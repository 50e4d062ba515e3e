"""Normalisations without their affine part, which rides along as steps."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitc.ir.op import Array, register, require
from vitc.ir.types import Batch, TensorType, per_image
from vitc.ops.fused import Fused


@register
@dataclass(frozen=True)
class Norm(Fused):
    """Normalises the last axis: (x - mean) / sqrt(var + eps), or x / sqrt(mean(x^2) + eps).

    kind: "layer" (Ba et al. 2016) or "rms" (Zhang and Sennrich 2019). `recenter` subtracts the
    row mean of the final values once more, after the steps.
    """

    name: ClassVar[str] = "norm"

    kind: str = "layer"
    eps: float = 1e-6
    recenter: bool = False

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(
            self.kind in ("layer", "rms"),
            f"norm kind '{self.kind}' is not layer or rms",
        )
        require(bool(types) and types[0].rank >= 1, "norm takes x")
        require(
            not isinstance(types[0].shape[-1], Batch),
            f"norm over the batch axis of {types[0]}",
        )
        return self.finish_types(types[0], types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        x = arrays[0]
        if self.kind == "layer":
            x = x - x.mean(-1, keepdims=True)
        x = x / np.sqrt(np.square(x).mean(-1, keepdims=True) + self.eps)
        return self.finish(x, arrays)

    def finish(self, result: Array, operands: Sequence[Array]) -> tuple[Array, ...]:
        if not self.recenter:
            return super().finish(result, operands)
        plain = Fused(self.steps, 0, self.dtype).finish(result, operands)[0]
        return Fused((), self.stats, sums=self.sums).finish(
            plain - plain.mean(-1, keepdims=True), ()
        )

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 5 * per_image(types[0].shape) + self.step_flops(results)


@register
@dataclass(frozen=True)
class GroupNorm(Fused):
    """Normalises each image's channel groups (Wu and He 2018). x [B, ..., C], channels last."""

    name: ClassVar[str] = "group_norm"

    groups: int = 32
    eps: float = 1e-5

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(bool(types) and types[0].rank >= 3, "group_norm takes x [B, ..., C]")
        channels = types[0].shape[-1]
        fits = not isinstance(channels, Batch) and channels % self.groups == 0
        require(fits, f"{types[0]} has no {self.groups} equal groups of channels")
        return self.finish_types(types[0], types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        x = arrays[0]
        shape = (x.shape[0], -1, self.groups, x.shape[-1] // self.groups)
        grouped = np.reshape(x, shape)
        grouped = grouped - grouped.mean((1, 3), keepdims=True)
        variance = np.square(grouped).mean((1, 3), keepdims=True)
        return self.finish(np.reshape(grouped / np.sqrt(variance + self.eps), x.shape), arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 5 * per_image(types[0].shape) + self.step_flops(results)
