"""Scaled dot-product attention."""

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
class Attention(Fused):
    """softmax(scale * scores + bias + mask) v, then the steps; scores = q k^T.

    q [B, H, Nq, d], k [B, H, Nk, d], v [B, H, Nk, dv]; result [B, H, Nq, dv]. Leading dimensions
    broadcast. Further operands, in this order, where the attribute says so:

    bias: broadcasts to [B, H, Nq, Nk].
    regions: int32 [W, N], Nq = Nk = N. Batch entry b has window b mod W (B is a multiple of W), and
        `apart` is added to the scores of tokens whose regions in that window differ: the mask of a
        shifted window of Swin (Liu et al. 2021, section 3.2).
    factors: [H], multiplies the scores of each head.

    cosine: None, or eps: rows of q and k are divided by max(norm, eps) first (Swin v2, Liu et al.
        2022, section 3.3).
    """

    name: ClassVar[str] = "attention"
    arity: ClassVar[int] = 3

    scale: float = 1.0
    bias: bool = False
    regions: bool = False
    apart: float = -100.0
    factors: bool = False
    cosine: float | None = None

    @property
    def main_operands(self) -> int:
        return 3 + self.bias + self.regions + self.factors

    @property
    def bias_operand(self) -> int | None:
        return 3 if self.bias else None

    @property
    def regions_operand(self) -> int | None:
        return 3 + self.bias if self.regions else None

    @property
    def factors_operand(self) -> int | None:
        return 3 + self.bias + self.regions if self.factors else None

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
        scores = (*lead, q.shape[2], k.shape[2])
        if self.bias_operand is not None:
            bias = types[self.bias_operand]
            widened = broadcast((scores, bias.shape))
            require(widened == scores, f"bias {bias} for scores of {q.with_shape(scores)}")
        if self.regions_operand is not None:
            _check_regions(types[self.regions_operand], q.with_shape(scores))
        if self.factors_operand is not None:
            factors = types[self.factors_operand]
            require(factors.shape == lead[1:], f"factors {factors} for {lead[1]} heads")
        return self.finish_types(q.with_shape((*lead, q.shape[2], v.shape[3])), types)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        q, k, v = arrays[:3]
        if self.cosine is not None:
            q, k = (_unit_rows(x, self.cosine) for x in (q, k))
        scores = self.scale * (q @ np.swapaxes(k, -1, -2))
        if self.factors_operand is not None:
            scores = scores * arrays[self.factors_operand][:, None, None]
        if self.bias_operand is not None:
            scores = scores + arrays[self.bias_operand]
        if self.regions_operand is not None:
            regions = arrays[self.regions_operand]
            mask = np.where(regions[:, :, None] != regions[:, None, :], self.apart, 0.0)
            scores = scores + np.tile(mask[:, None], (scores.shape[0] // len(regions), 1, 1, 1))
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        return self.finish((scores / scores.sum(-1, keepdims=True)) @ v, arrays)

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        q, v = types[0], types[2]
        per_score = 2 * (per_image(q.shape[3:]) + per_image(v.shape[3:]))
        scores = per_image((*results[0].shape[:3], types[1].shape[2]))
        return per_score * scores + self.step_flops(results)


def _check_regions(regions: TensorType, scores: TensorType) -> None:
    """Raises TypeMismatch unless `regions` is [W, N] for scores [W b, H, N, N]."""
    count = scores.shape[0]
    windows = count.count if isinstance(count, Batch) else count
    require(
        regions.rank == 2
        and not regions.dtype.is_float
        and regions.shape[1] == scores.shape[2] == scores.shape[3]
        and windows % per_image(regions.shape[:1]) == 0,
        f"regions {regions} for scores of {scores}",
    )


def _unit_rows(x: Array, eps: float) -> Array:
    return x / np.maximum(np.sqrt(np.square(x).sum(-1, keepdims=True)), eps)
