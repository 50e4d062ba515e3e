"""Attention against numpy in float64: ragged sizes, d != dv, other strides, bias, few queries."""

from __future__ import annotations

import harness as h
import numpy as np
import pytest

SOURCE = """
#include "vitc/cpu/attention.h"
using namespace vitc;
// args: q [B, NQ, H, D], k [B, NK, H, D], v [B, NK, H, DV], out [B, NQ, H, DV], bias or null
#define INSTANCE(name, H, NQ, NK, D, DV) \\
  using Kernel_##name = Attention<TYPE, H, NQ, NK, D, DV>; \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Kernel_##name::run(c, {arg<const TYPE>(c, 0), NQ * H * D, D, H * D}, \\
                              {arg<const TYPE>(c, 1), NK * H * D, D, H * D}, \\
                              {arg<const TYPE>(c, 2), NK * H * DV, DV, H * DV}, \\
                              {arg<TYPE>(c, 3), NQ * H * DV, DV, H * DV}, 0.3f, \\
                              {arg<const float>(c, 4), 0, NQ * NK, NK}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return Kernel_##name::scratch(t); }
"""
SHAPES = {  # heads, queries, keys, d, dv
    "square": (3, 50, 50, 64, 64),
    "ragged": (2, 37, 61, 18, 35),
    "pooling": (4, 1, 197, 32, 32),
    "long": (1, 30, 700, 80, 256),
}


@pytest.fixture(scope="module")
def library(isa: str, dtype: str) -> h.KernelLibrary:
    text = "".join(f"INSTANCE({n}, {', '.join(map(str, s))})\n" for n, s in SHAPES.items())
    return h.KernelLibrary(SOURCE + text, list(SHAPES), isa, (f"-DTYPE={dtype}",))


@pytest.mark.parametrize("biased", [False, True])
@pytest.mark.parametrize("name", SHAPES)
def test_attention(
    library: h.KernelLibrary, dtype: str, threads: int, name: str, biased: bool
) -> None:
    heads, queries, keys, d, dv = SHAPES[name]
    rng = np.random.default_rng(len(name))
    shapes = [(2, queries, heads, d), (2, keys, heads, d), (2, keys, heads, dv)]
    stored = [h.cast(rng.standard_normal(s).astype(np.float32), dtype) for s in shapes]
    bias = rng.standard_normal((heads, queries, keys)).astype(np.float32) * 4
    bias[0, 0, : keys // 2] = -np.inf if biased else 0
    out = h.empty((2, queries, heads, dv), dtype)
    library.run(name, [*stored, out, bias if biased else None], 2, threads)

    q, k, v = (h.as_float(x).transpose(0, 2, 1, 3) for x in stored)
    scores = 0.3 * q @ k.transpose(0, 1, 3, 2) + (bias if biased else 0)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = (weights / weights.sum(-1, keepdims=True) @ v).transpose(0, 2, 1, 3)
    assert h.relative_error(out, want) < (2e-6 if dtype == "float" else 3e-3)


def test_large_scores_do_not_overflow(library: h.KernelLibrary, dtype: str) -> None:
    """One score of about 1e4 above the others: its value alone comes out."""
    heads, queries, _, d, _ = SHAPES["square"]
    q = np.zeros((1, queries, heads, d), np.float32)
    k, v = np.zeros_like(q), np.random.default_rng(1).integers(-4, 5, q.shape).astype(np.float32)
    q[..., 0], k[:, 7, :, 0] = 256, 128
    out = h.empty(v.shape, dtype)
    library.run("square", [*(h.cast(x, dtype) for x in (q, k, v)), out, None], 1)
    assert np.array_equal(h.as_float(out), np.broadcast_to(v[:, 7:8], v.shape))
