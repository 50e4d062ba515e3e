"""Hopper's GEMMs as cases: every form of tile, ragged rows, integers and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kernels.gpu.case import CPP, Case, compare, draw, emitting, poison, statistics
from numpy.typing import NDArray

# Cooperative, ping-pong, with a cluster, with three consumers, statistics of a row in 16-byte
# stores, six rows of a thread; split over a cluster or not.
LARGE = {
    "cooperative": "GemmTile<T, 64, 64, 3, 2, false, 1>",
    "ping-pong": "GemmTile<T, 64, 32, 2, 2, true, 1>",
    "cluster": "GemmTile<T, 64, 64, 3, 2, true, 2>",
    "cooperative cluster": "GemmTile<T, 64, 64, 2, 2, false, 2>",
    "tall": "GemmTile<T, 128, 64, 2, 2, true, 1>",
    "three": "GemmTile<T, 64, 96, 2, 3, false, 1>",
    "wide": "GemmTile<T, 64, 192, 2, 2, false, 1>",
    "six rows": "GemmTile<T, 192, 32, 2, 2, true, 1>",
}
SPLIT = {
    "one part": "SplitTile<T, 64, 3, 1>",
    "two parts": "SplitTile<T, 64, 2, 2>",
    "three parts": "SplitTile<T, 32, 3, 3>",
    "two groups": "SplitTile<T, 96, 2, 2, 2>",
    "two groups, one part": "SplitTile<T, 64, 2, 1, 2>",
    "four parts": "SplitTile<T, 128, 2, 4>",
    "two groups, four parts": "SplitTile<T, 96, 2, 4, 2>",
    "eight parts": "SplitTile<T, 64, 2, 8, 2>",
    "two groups, three parts": "SplitTile<T, 256, 2, 3, 2>",
}


def packed(w: NDArray) -> NDArray:
    """W as `pack_weight` of codegen/targets/gpu/sm90_gemm.py leaves it."""
    n, k = w.shape
    padded = np.concatenate([w, np.zeros((-n % 32, k), w.dtype)])
    return padded.reshape(-1, 4, 4, 2, k).transpose(0, 2, 1, 3, 4).reshape(-1, k).copy()


def gemm(
    tile: str,
    m: int,
    n: int,
    k: int,
    dtype: str = "float16",
    *,
    exact: bool = True,
    sums: bool = False,
    ahead: bool = False,
) -> Case:
    """Y = s (A W^T) + bias + residual with a scale s of each row, and the statistics of Y over
    slices of 32 columns. Rows of A lie 8 elements further apart than they are long. Y takes the
    residual's place. ahead: without s, the residual is loaded ahead (RowOperands of tile.h).
    """
    a, av = draw((m, k + 8), dtype, 1, exact=exact)
    w, wv = draw((n, k), dtype, 2, exact=exact)
    bias, bv = draw((n,), dtype, 3, exact=exact)
    residual, rv = draw((m, n), dtype, 4, exact=exact)
    scale, sv = draw((m,), "float32", 5, exact=exact)
    sv = np.ones(m) if ahead else sv
    want = sv[:, None] * (av[:, :k] @ wv.T) + bv + rv
    stats = statistics(want, 32, sums=sums)
    function = "gemm" if tile in LARGE else "split_gemm"
    by_row = f"""
  static constexpr bool kRowOperand = true;
  VITC_DEVICE const T* row_operand(int row, int column) const {{
    return residual + row * {n} + column;
  }}
  template <int V>
  VITC_DEVICE void steps_with(int, int column, float (&v)[V], float, const T (&operand)[V]) const {{
    gpu::add(v, bias + column);
    gpu::add(v, operand);
  }}"""
    text = f"""
using gpu::half;
using gpu::bfloat16;
using T = {CPP[dtype]};
using namespace gpu::sm90;
struct Epilogue {{
  static constexpr bool kRowScale = {str(not ahead).lower()}, kOperands = true;
  const T *bias, *residual;
  const float* scale;
  T* out;
{emitting(32, n, sums=sums)}{by_row if ahead else ""}
  template <class Visit>
  VITC_DEVICE void operands(int row, int column, const Visit& visit) const {{
    visit(residual + row * {n} + column);
  }}
  VITC_DEVICE float row_scale(int row) const {{ return scale[row]; }}
  template <int V>
  VITC_DEVICE void steps(int row, int column, float (&v)[V], float row_scale) const {{
    gpu::scale(v, row_scale);
    gpu::add(v, bias + column);
    gpu::add(v, residual + row * {n} + column);
  }}
  template <int V>
  VITC_DEVICE void store(int row, int column, float (&v)[V], bool inside = true) const {{
    gpu::write(out + row * {n} + column, v, inside);
  }}
}};
extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  const Epilogue epilogue{{(const T*)args[2], (const T*)args[3], (const float*)args[4],
                          (T*)args[3], (float*)args[5]}};
  return {function}<{(LARGE | SPLIT)[tile]}, {n}, {k}, 32>(
      "{tile}", nullptr, int(sizes[0]), (const T*)args[0], {k + 8}, (const T*)args[1], epilogue);
}}
"""

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[3], want, dtype, exact=exact)
        compare(arrays[5], stats, "float32", exact=exact, factor=1 if exact else 5e3)

    name = f"{tile} {m}x{n}x{k} {dtype}{'' if exact else ' random'}{' sums' if sums else ''}"
    arrays = [a, packed(w), bias, residual, scale, poison(stats.shape, "float32")]
    header = f"vitc/gpu/sm90/{function}.cuh"
    held = (0, 3, 4, 5)
    return Case(name + " ahead" * ahead, text, arrays, check, (m,), header=header, held=held)


CASES = [
    *(gemm(tile, m, 96, 136, sums=m > 1) for tile in LARGE for m in (1, 300)),
    *(gemm(tile, m, 96, 520, sums=m > 1) for tile in SPLIT for m in (1, 75)),
    gemm("ping-pong", 64 * 9, 72, 64),
    gemm("cooperative", 200, 104, 200, exact=False),
    gemm("cluster", 520, 128, 192, "bfloat16", exact=False),
    gemm("cluster", 520, 96, 328),
    gemm("cluster", 300, 72, 136, exact=False, sums=True),
    gemm("wide", 70, 96, 136),
    gemm("wide", 70, 384, 136, sums=True),
    gemm("two parts", 70, 104, 328, "bfloat16", exact=False),
    gemm("three parts", 70, 104, 328, exact=False, sums=True),
    *(gemm(tile, 150, 104, 200, ahead=True) for tile in ("tall", "cooperative", "one part")),
    gemm("six rows", 300, 104, 136, ahead=True),
    *(gemm(tile, 150, 104, 328, ahead=True) for tile in ("three parts", "two groups, four parts")),
    gemm("eight parts", 133, 104, 520, "bfloat16", exact=False, sums=True),
]
