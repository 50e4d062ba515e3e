"""Matrix products: `linear` with a weight, `matmul` of two activations."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitc.ir.op import Array, register, require
from vitc.ir.types import Batch, TensorType, broadcast, per_image
from vitc.ops.fused import Fused


@register
@dataclass(frozen=True)
class Linear(Fused):
    """x [..., K] times w [N, K] transposed: [..., N], then the steps."""

    name: ClassVar[str] = "linear"
    arity: ClassVar[int] = 2

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) >= 2, "linear takes x and w")
        x, w = types[:2]
        require(w.rank == 2 and x.rank >= 1, f"linear of x {x} and w {w}")
        require(
            x.shape[-1] == w.shape[1],
            f"x has {x.shape[-1]} channels, w takes {w.shape[1]}",
        )
        return self.finish_types(x.with_shape((*x.shape[:-1], w.shape[0])), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return self.finish(arrays[0] @ np.transpose(arrays[1]), arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        return 2 * per_image(results[0].shape) * per_image(types[1].shape[1:]) + self.step_flops(
            results
        )


@register
@dataclass(frozen=True)
class MatMul(Fused):
    """a [..., M, K] times b [..., K, N], leading dimensions broadcast, then the steps."""

    name: ClassVar[str] = "matmul"
    arity: ClassVar[int] = 2

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) >= 2, "matmul takes a and b")
        a, b = types[:2]
        require(a.rank >= 2 and b.rank >= 2, f"matmul of a {a} and b {b}")
        require(
            a.shape[-1] == b.shape[-2],
            f"matmul of a {a} and b {b}: inner dimensions differ",
        )
        lead = broadcast((a.shape[:-2], b.shape[:-2]))
        return self.finish_types(a.with_shape((*lead, a.shape[-2], b.shape[-1])), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return self.finish(arrays[0] @ arrays[1], arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        inner = types[0].shape[-1]
        assert not isinstance(inner, Batch)
        return 2 * per_image(results[0].shape) * inner + self.step_flops(results)
