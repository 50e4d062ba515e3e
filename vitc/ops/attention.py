"""Scaled dot-product attention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitc.ir.op import Array, register, require
from vitc.ir.types import TensorType, broadcast, per_image
from vitc.ops.fused import Fused


@register
@dataclass(frozen=True)
class Attention(Fused):
    """softmax(scale * q k^T + bias) v, then the steps.

    q [B, H, Nq, d], k [B, H, Nk, d], v [B, H, Nk, dv] and, when `bias`, a fourth operand that
    broadcasts to [B, H, Nq, Nk]; result [B, H, Nq, dv]. Leading dimensions broadcast.
    """

    name: ClassVar[str] = "attention"
    arity: ClassVar[int] = 3

    scale: float = 1.0
    bias: bool = False

    @property
    def main_operands(self) -> int:
        return 4 if self.bias else 3

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(
            len(types) >= self.main_operands,
            f"attention takes {self.main_operands} operands",
        )
        q, k, v = types[:3]
        require(q.rank == k.rank == v.rank == 4, f"attention of q {q}, k {k}, v {v}")
        require(q.shape[3] == k.shape[3], f"q {q} and k {k} differ in head dimension")
        require(k.shape[2] == v.shape[2], f"k {k} and v {v} differ in tokens")
        lead = broadcast((q.shape[:2], k.shape[:2], v.shape[:2]))
        if self.bias:
            scores = (*lead, q.shape[2], k.shape[2])
            widened = broadcast((scores, types[3].shape))
            require(
                widened == scores,
                f"bias {types[3]} for scores of {q.with_shape(scores)}",
            )
        return self.finish_types(q.with_shape((*lead, q.shape[2], v.shape[3])), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        q, k, v = arrays[:3]
        scores = self.scale * (q @ np.swapaxes(k, -1, -2))
        if self.bias:
            scores = scores + arrays[3]
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return self.finish((scores / scores.sum(-1, keepdims=True)) @ v, arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        q, v = types[0], types[2]
        per_score = 2 * (per_image(q.shape[3:]) + per_image(v.shape[3:]))
        scores = per_image((*results[0].shape[:3], types[1].shape[2]))
        return per_score * scores + self.step_flops(results)
