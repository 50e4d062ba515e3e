"""Hopper's attention as cases: one block of keys and several, which stay or come anew, ragged."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kernels.gpu.attention_cases import reference
from kernels.gpu.case import CPP, Case, compare, draw, poison
from numpy.typing import NDArray

SHAPES: dict[str, tuple[tuple[int, ...], int, int]] = {}  # tile, batch and heads of each case


def attention(
    name: str,
    tile: tuple[int, ...],
    batch: int,
    heads: int,
    dtype: str = "float16",
    *,
    low: bool = False,
    far: bool = False,
) -> Case:
    """softmax(q k^T / sqrt(d)) v, read from [batch, tokens, 3, heads, d].

    tile: queries, keys, d, and block keys, stages, query slots, consumers of AttentionTile. low:
    all scores are as far below those of padding as exp2 reaches, and equal: the result is the mean
    of the values, exactly so where their number is a power of two. far: scores differ by hundreds,
    so that weights which are not taken from a row's true maximum are infinite. Both for float16.
    """
    queries, keys, d = tile[:3]
    exact = low and keys & (keys - 1) == 0
    tokens = max(queries, keys)
    qkv, values = draw((batch, tokens, 3, heads, d), dtype, 41, exact=exact)
    if low:
        qkv[:, :, 0], values[:, :, 0] = 8, 8
        qkv[:, :, 1], values[:, :, 1] = -8, -8
    if far:
        qkv[:, :, :2] *= 16
        values[:, :, :2] *= 16
    q, k, v = np.moveaxis(values, 2, 0)
    factor = np.full((1, 1, 1), d**-0.5)
    want = reference(q[:, :queries], k[:, :keys], v[:, :keys], factor, np.zeros(1))
    width = heads * d
    text = f"""
using gpu::half;
using gpu::bfloat16;
using namespace gpu::sm90;
using T = {CPP[dtype]};
extern "C" int @run@(void* const* args, const int64_t*) {{
  const T* qkv = (const T*)args[0];
  const auto part = [&](int i) {{
    return Heads<T>{{qkv + i * {width}, {3 * width}, {d}, {tokens * 3 * width}}};
  }};
  const HeadRows<T, {queries * width}, {d}, {width}> out{{(T*)args[1]}};
  return attention<AttentionTile<T, {", ".join(map(str, tile))}>>(
      "{name}", nullptr, {batch}, {heads}, part(0), part(1), part(2), out, {d**-0.5}f);
}}
"""

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[1], want, dtype, exact=exact, factor=2)

    SHAPES[name] = tile, batch, heads
    out = poison((batch, queries, heads, d), dtype)
    return Case(name, text, [qkv, out], check, header="vitc/gpu/sm90/attention.cuh", held=(0, 1))


# The emulated card has four multiprocessors: blocks have several units each.
CASES = [
    attention("one block", (70, 70, 64, 80, 2, 2, 2), 3, 3),
    attention("mean of values", (64, 4, 16, 16, 1, 2, 2), 2, 3, low=True),
    attention("three blocks, which stay", (150, 150, 80, 64, 3, 4, 2), 1, 3),
    attention("two blocks, three heads at a time", (197, 101, 64, 64, 6, 4, 2), 3, 3),
    attention("blocks come anew, three units a head", (330, 200, 32, 48, 2, 3, 2), 2, 2),
    attention("three consumers, two panels", (260, 90, 128, 96, 1, 3, 3), 1, 3),
    attention("units of five tiles", (300, 64, 32, 64, 1, 4, 2), 4, 2),
    attention("one query", (1, 50, 72, 64, 1, 2, 2), 3, 2, "bfloat16"),
    attention("ViT's, scores far apart", (197, 197, 64, 112, 4, 6, 3), 3, 3, far=True),
    # Rows behind the last tile of 64: one, a warp's 16, one more, all but one, none.
    attention("a row left", (65, 101, 48, 64, 3, 6, 3), 3, 2, "bfloat16"),
    attention("16 rows left, mean of values", (80, 64, 64, 64, 1, 3, 3), 5, 2, low=True),
    attention("17 rows left", (145, 145, 64, 80, 4, 6, 3), 2, 2),
    attention("63 rows left", (127, 127, 64, 64, 4, 6, 3), 2, 2),
    attention("no row left", (128, 128, 64, 64, 4, 6, 3), 2, 2),
    attention("5 rows left, blocks come anew", (261, 261, 80, 96, 2, 4, 2), 2, 2),
]
