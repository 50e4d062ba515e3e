"""Importers of matrix products and of scaled dot-product attention."""

from __future__ import annotations

import numpy as np

from vitc.ir.builder import Value
from vitc.ops import Attention, MatMul, Step
from vitc.ops.aten import Context, aten, refuse, size_of


@aten("linear.default")
def linear(b: Context, x: Value, weight: Value, bias: Value | None = None) -> Value:
    return b.linear(x, weight, bias)


@aten("addmm.default")
def addmm(
    b: Context, bias: Value, x: Value, w: Value, *, beta: float = 1, alpha: float = 1
) -> Value:
    refuse(beta != 1 or alpha != 1, f"addmm with beta {beta}, alpha {alpha}")
    return b.emit(MatMul((Step("add", 2),)), x, w, bias)


@aten("matmul.default", "mm.default", "bmm.default")
def matmul(b: Context, x: Value, other: Value) -> Value:
    return b.emit(MatMul(), x, other)


@aten("scaled_dot_product_attention.default")
def attention(
    b: Context,
    q: Value,
    k: Value,
    v: Value,
    attn_mask: Value | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    *,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Value:
    refuse(dropout_p > 0, "attention with dropout")
    refuse(enable_gqa, "attention with fewer key heads than query heads")
    refuse(len(q.shape) != 4, f"attention of q {q.type}, not [B, heads, tokens, channels]")
    if attn_mask is not None:
        refuse(not attn_mask.type.dtype.is_float, "attention with a mask of bools")
    if is_causal:
        attn_mask = _causal(b, q, k)
    factor = size_of(q.shape[-1], "head dimension") ** -0.5 if scale is None else scale
    if attn_mask is None:
        return b.emit(Attention(scale=factor), q, k, v)
    return b.emit(Attention(scale=factor, bias=True), q, k, v, attn_mask)


def _causal(b: Context, q: Value, k: Value) -> Value:
    """Minus infinity where a key comes after its query, [Nq, Nk]."""
    rows, columns = size_of(q.shape[2], "tokens"), size_of(k.shape[2], "tokens")
    later = np.triu(np.ones((rows, columns), bool), 1)
    with b.part("causal"):
        return b.literal(np.where(later, -np.inf, 0.0).astype(np.float32))
