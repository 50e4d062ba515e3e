"""Elementwise work that found no op to ride on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from vitc.ir.op import Array, register, require
from vitc.ir.types import TensorType
from vitc.ops.fused import Fused


@register
@dataclass(frozen=True)
class Pointwise(Fused):
    """x, then the steps, with numpy's broadcasting. Without steps it is a cast to `dtype`."""

    name: ClassVar[str] = "pointwise"

    @property
    def grows(self) -> bool:
        return True

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) >= 1, "pointwise takes x")
        return self.finish_types(types[0], types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return self.finish(arrays[0], arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return self.step_flops(results)
