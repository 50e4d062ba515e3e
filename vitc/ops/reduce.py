"""Reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitc.ir.op import Array, Op, register, require
from vitc.ir.types import Batch, TensorType, per_image
from vitc.ops.fused import Fused


@register
@dataclass(frozen=True)
class Reduce(Fused):
    """Sum, mean or maximum over `axes` (not the batch); keeps them as 1 when `keepdims`."""

    name: ClassVar[str] = "reduce"

    kind: str = "mean"
    axes: tuple[int, ...] = (-1,)
    keepdims: bool = False

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(
            self.kind in ("sum", "mean", "max"),
            f"reduce kind '{self.kind}' is not sum, mean or max",
        )
        require(len(types) >= 1, "reduce takes x")
        x = types[0]
        axes = {axis % x.rank for axis in self.axes}
        require(len(axes) == len(self.axes) > 0, f"reduce axes {list(self.axes)} of {x}")
        require(
            not any(isinstance(x.shape[axis], Batch) for axis in axes),
            f"reduce over the batch of {x}",
        )
        kept = [
            1 if axis in axes else dim
            for axis, dim in enumerate(x.shape)
            if self.keepdims or axis not in axes
        ]
        return self.finish_types(x.with_shape(kept), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        reducer = {"sum": np.sum, "mean": np.mean, "max": np.max}[self.kind]
        result = np.asarray(reducer(arrays[0], axis=self.axes, keepdims=self.keepdims))
        return self.finish(result, arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return per_image(types[0].shape) + self.step_flops(results)


@register
@dataclass(frozen=True)
class Softmax(Op):
    """exp(x) / sum(exp(x)) over the last axis."""

    name: ClassVar[str] = "softmax"

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) == 1 and types[0].rank >= 1, "softmax takes x")
        return (types[0],)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        raised = np.exp(arrays[0] - arrays[0].max(-1, keepdims=True))
        return (raised / raised.sum(-1, keepdims=True),)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 4 * per_image(types[0].shape)
