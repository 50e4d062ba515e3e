"""Hopper's GEMMs as cases: every form of tile, ragged rows, integers and random numbers."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kernels.gpu.case import CPP, Case, compare, draw, emitting, poison, statistics
from numpy.typing import NDArray

# Cooperative, ping-pong, with a cluster, with three consumers, statistics of a row in 16-byte
# stores, six rows of a thread; numbers of column groups that go in pairs (Pieces of tile.h) but for
# the last, or all, and 192 sums of a thread, which leave no registers for the first residual; split
# over a cluster or not.
LARGE = {
    "cooperative": "GemmTile<T, 64, 64, 3, 2, false, 1>",
    "ping-pong": "GemmTile<T, 64, 32, 2, 2, true, 1>",
    "cluster": "GemmTile<T, 64, 64, 3, 2, true, 2>",
    "cooperative cluster": "GemmTile<T, 64, 64, 2, 2, false, 2>",
    "tall": "GemmTile<T, 128, 64, 2, 2, true, 1>",
    "three": "GemmTile<T, 64, 96, 2, 3, false, 1>",
    "wide": "GemmTile<T, 64, 192, 2, 2, false, 1>",
    "six rows": "GemmTile<T, 192, 32, 2, 2, true, 1>",
    "six wide rows": "GemmTile<T, 192, 96, 2, 2, true, 1>",
    "odd groups": "GemmTile<T, 128, 160, 2, 2, true, 1>",
    "even groups": "GemmTile<T, 64, 128, 2, 2, false, 1>",
    "192 sums": "GemmTile<T, 128, 192, 2, 2, true, 1>",
    "192 sums of six rows": "GemmTile<T, 192, 128, 2, 2, true, 1>",
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
    backwards: bool = False,
    apart: bool = False,
    width: int = 32,
) -> Case:
    """Y = s (A W^T) + bias + residual with a scale s of each row, and the statistics of Y over
    slices of `width` columns. Rows of A lie 8 elements further apart than they are long. Y takes
    the residual's place, unless it is to lie apart. ahead: without s, the residual is loaded ahead
    (RowOperands of tile.h). backwards: the tiles from the last to the first.
    """
    a, av = draw((m, k + 8), dtype, 1, exact=exact)
    w, wv = draw((n, k), dtype, 2, exact=exact)
    bias, bv = draw((n,), dtype, 3, exact=exact)
    residual, rv = draw((m, n), dtype, 4, exact=exact)
    scale, sv = draw((m,), "float32", 5, exact=exact)
    sv = np.ones(m) if ahead else sv
    want = sv[:, None] * (av[:, :k] @ wv.T) + bv + rv
    stats = statistics(want, width, sums=sums)
    function = "gemm" if tile in LARGE else "split_gemm"
    type_ = (LARGE | SPLIT)[tile]
    if backwards:
        type_ = type_.replace(">", ", true, true>")
    result = 6 if apart else 3
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
{emitting(width, n, sums=sums)}{by_row if ahead else ""}
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
                          (T*)args[{result}], (float*)args[5]}};
  return {function}<{type_}, {n}, {k}, {width}>(
      "{tile}", nullptr, int(sizes[0]), (const T*)args[0], {k + 8}, (const T*)args[1], epilogue);
}}
"""

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[result], want, dtype, exact=exact)
        compare(arrays[5], stats, "float32", exact=exact, factor=1 if exact else 5e3)

    name = f"{tile} {m}x{n}x{k} {dtype}{'' if exact else ' random'}{' sums' if sums else ''}"
    flags = {"ahead": ahead, "backwards": backwards, "apart": apart, f"stats={width}": width != 32}
    arrays = [a, packed(w), bias, residual, scale, poison(stats.shape, "float32")]
    if apart:
        arrays.append(poison((m, n), dtype))
    header = f"vitc/gpu/sm90/{function}.cuh"
    held = (0, 3, 4, 5, 6)[: len(arrays) - 2]
    name = " ".join((name, *(flag for flag, on in flags.items() if on)))
    return Case(name, text, arrays, check, (m,), header=header, held=held)


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
    # Pieces of three groups, of two and a last one, of six rows, behind 192 sums; in place.
    *(
        gemm(tile, 200, n, 72, ahead=True, sums=True)
        for tile, n in (
            ("three", 200),
            ("six wide rows", 96),
            ("odd groups", 320),
            ("odd groups", 136),  # the last tile is not whole
            ("even groups", 168),
            ("192 sums", 384),
            ("192 sums of six rows", 128),
        )
    ),
    gemm("192 sums", 300, 192, 136, "bfloat16", exact=False, ahead=True, apart=True),
    gemm("odd groups", 200, 160, 136, exact=False, ahead=True, apart=True),
    gemm("even groups", 150, 192, 72, ahead=True, width=64),
    # More tiles than blocks, the last ragged, clusters at their end.
    *(
        gemm(tile, m, 104, 136, ahead=ahead, backwards=True)
        for tile, m, ahead in (
            ("ping-pong", 300, False),
            ("cooperative", 300, False),
            ("cluster", 520, False),
            ("cooperative cluster", 300, False),
            ("three", 420, True),
            ("six rows", 450, True),
            ("odd groups", 300, True),
        )
    ),
    gemm("cluster", 1, 96, 136, backwards=True),
    *(gemm(tile, 150, 104, 328, ahead=True) for tile in ("three parts", "two groups, four parts")),
    gemm("eight parts", 133, 104, 520, "bfloat16", exact=False, sums=True),
]
