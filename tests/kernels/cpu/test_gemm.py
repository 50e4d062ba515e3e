"""GEMM against numpy: exact on integers, ragged sizes, every operand and epilogue step."""

from __future__ import annotations

import math

import harness as h
import numpy as np
import pytest

PLAIN = """
#include "vitc/cpu/gemm.h"
using namespace vitc;
struct Store {
  float* out; int64_t width;
  static constexpr int64_t kSlice = 0;
  struct Row { float* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * width}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, x, lanes);
  }
};
template <int64_t N, int64_t K> using Kernel = Gemm<N, K, DenseRows<TYPE, K>, TYPE, Store>;
#define INSTANCE(name, N, K) \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Kernel<N, K>::run(c, c.batch, {arg<const TYPE>(c, 0)}, arg<const TYPE>(c, 1), \\
                             {arg<float>(c, 2), N}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return Kernel<N, K>::scratch(t); }
"""
SIZES = [(1, 1), (33, 7), (64, 64), (100, 512), (31, 130)]


@pytest.fixture(scope="module")
def plain(isa: str, dtype: str) -> h.KernelLibrary:
    instances = "".join(f"INSTANCE(mm_{n}_{k}, {n}, {k})\n" for n, k in SIZES)
    names = [f"mm_{n}_{k}" for n, k in SIZES]
    return h.KernelLibrary(PLAIN + instances, names, isa, (f"-DTYPE={dtype}",))


@pytest.mark.parametrize("m", [1, 2, 5, 7, 12, 13, 64, 250])
@pytest.mark.parametrize(("n", "k"), SIZES)
def test_integers_are_exact(
    plain: h.KernelLibrary, dtype: str, threads: int, m: int, n: int, k: int
) -> None:
    rng = np.random.default_rng(m * n + k)
    a, w = rng.integers(-8, 9, (m, k)), rng.integers(-8, 9, (n, k))
    out = np.full((m + 1, n), np.nan, np.float32)
    args = [h.cast(a, dtype), h.pack_panels(w.astype(np.float32), dtype), out]
    plain.run(f"mm_{n}_{k}", args, m, threads)
    assert np.array_equal(out[:m], a @ w.T)
    assert np.isnan(out[m]).all(), "wrote past the last row"


FULL = """
#include "vitc/cpu/gemm.h"
using namespace vitc;
constexpr int64_t kN = 200, kK = 96, kParts = 4, kPeriod = 5;
struct Epilogue {
  const float *stats, *bias; const TYPE *table, *gate, *residual; TYPE* out; float* squares;
  static constexpr int64_t kSlice = 64;
  struct Row { float rstd; const TYPE *table, *gate, *residual; TYPE* out; Vec squares; };
  VITC_INLINE Row begin(int64_t m) const {
    return {rstd<3>(stats + m * 3, kK, 1e-6f), table + m % kPeriod * kN, gate + m * kN,
            residual + m * kN, out + m * kN, Vec{}};
  }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    x = x * row.rstd;
    x = x + load(bias + n, lanes);
    x = gelu_erf(x);
    x = x * load(row.gate + n, lanes);
    x = x + load(row.table + n, lanes);
    x = x + load(row.residual + n, lanes);
    x = store(row.out + n, x, lanes);
    row.squares = row.squares + x * x;
  }
  VITC_INLINE void end_slice(Row& row, int64_t m, int64_t slice) const {
    squares[m * kParts + slice] = sum(row.squares);
    row.squares = Vec{};
  }
};
using Kernel = Gemm<kN, kK, DenseRows<TYPE, kK>, TYPE, Epilogue>;
extern "C" int VITC_SYMBOL(fn)(const Call& c) {
  return Kernel::run(c, c.batch, {arg<const TYPE>(c, 0)}, arg<const TYPE>(c, 1),
                     {arg<const float>(c, 2), arg<const float>(c, 3), arg<const TYPE>(c, 4),
                      arg<const TYPE>(c, 5), arg<const TYPE>(c, 6), arg<TYPE>(c, 6),
                      arg<float>(c, 7)});
}
extern "C" uint64_t VITC_SYMBOL(fn_scratch)(int t) { return Kernel::scratch(t); }
"""


def gelu(x: np.ndarray) -> np.ndarray:
    return 0.5 * x * np.vectorize(math.erfc)(-x / math.sqrt(2))


@pytest.mark.parametrize("m", [3, 197])
def test_epilogue(isa: str, dtype: str, threads: int, m: int, rng: np.random.Generator) -> None:
    """Every step at once, the residual updated in place, sums of squares of the stored values."""
    library = h.KernelLibrary(FULL, ["fn"], isa, (f"-DTYPE={dtype}",))
    n, k, slices = 200, 96, 4
    a, w = (rng.standard_normal(s).astype(np.float32) for s in ((m, k), (n, k)))
    stats = rng.uniform(1, 40, (m, 3)).astype(np.float32)
    bias = rng.standard_normal(n).astype(np.float32)
    stored = [
        h.cast(rng.standard_normal(s).astype(np.float32), dtype) for s in ((5, n), (m, n), (m, n))
    ]
    table, gate, residual = (h.as_float(x) for x in stored)
    squares = np.full((m, slices), np.nan, np.float32)
    a16, w16 = h.cast(a, dtype), h.cast(w, dtype)
    args = [a16, h.pack_panels(w, dtype), stats, bias, *stored, squares]
    library.run("fn", args, m, threads)

    x = h.as_float(a16) @ h.as_float(w16).T
    x *= 1 / np.sqrt(stats.astype(np.float64).sum(1, keepdims=True) / k + 1e-6)
    want = gelu(x + bias) * gate + table[np.arange(m) % 5] + residual
    assert h.relative_error(stored[2], want) < (1e-6 if dtype == "float" else 3e-3)
    got = h.as_float(stored[2])
    sums = [(got[:, i : i + 64] ** 2).sum(1) for i in range(0, n, 64)]
    assert np.allclose(squares, np.stack(sums, 1), rtol=1e-5)


GATHER = """
#include "vitc/cpu/gemm.h"
using namespace vitc;
struct Store {
  float* out; int64_t width;
  static constexpr int64_t kSlice = 0;
  struct Row { float* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * width}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, x, lanes);
  }
};
// Rows of a 6 x 8 grid in windows of 3 x 4, every fifth one zero.
struct Windows {
  VITC_INLINE int64_t operator()(int64_t m) const {
    const int64_t x = m % 4 + m / 12 % 2 * 4, y = m / 4 % 3 + m / 24 % 2 * 3;
    return m % 5 == 4 ? -1 : ((m / 48 * 6 + y) * 8 + x) * 24;
  }
};
// 2 x 2 neighbours side by side.
struct Merge {
  VITC_INLINE int64_t operator()(int64_t m, int64_t k) const {
    const int64_t x = m % 4 * 2 + k / 24 % 2, y = m / 4 % 3 * 2 + k / 48;
    return ((m / 12 * 6 + y) * 8 + x) * 24;
  }
};
using MapRows = MappedRows<TYPE, 24, Windows>;
using MergeRows = GatherRows<TYPE, 96, 24, Merge>;
extern "C" int VITC_SYMBOL(mapped)(const Call& c) {
  return Gemm<40, 24, MapRows, TYPE, Store>::run(c, c.batch, {arg<const TYPE>(c, 0), {}},
                                                 arg<const TYPE>(c, 1), {arg<float>(c, 2), 40});
}
extern "C" uint64_t VITC_SYMBOL(mapped_scratch)(int t) {
  return Gemm<40, 24, MapRows, TYPE, Store>::scratch(t);
}
extern "C" int VITC_SYMBOL(merged)(const Call& c) {
  return Gemm<40, 96, MergeRows, TYPE, Store>::run(c, c.batch, {arg<const TYPE>(c, 0), {}},
                                                   arg<const TYPE>(c, 1), {arg<float>(c, 2), 40});
}
extern "C" uint64_t VITC_SYMBOL(merged_scratch)(int t) {
  return Gemm<40, 96, MergeRows, TYPE, Store>::scratch(t);
}
"""


def test_gathered_rows(isa: str, dtype: str, threads: int, rng: np.random.Generator) -> None:
    """Window partition with zero rows, and patch merging, exactly."""
    library = h.KernelLibrary(GATHER, ["mapped", "merged"], isa, (f"-DTYPE={dtype}",))
    images = 3
    grid = rng.integers(-8, 9, (images, 6, 8, 24)).astype(np.float32)
    w = rng.integers(-8, 9, (40, 96)).astype(np.float32)

    rows = grid.reshape(images, 2, 3, 2, 4, 24).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 24).copy()
    rows[4::5] = 0
    out = np.full((len(rows), 40), np.nan, np.float32)
    args = [h.cast(grid, dtype), h.pack_panels(w[:, :24], dtype), out]
    library.run("mapped", args, len(rows), threads)
    assert np.array_equal(out, rows @ w[:, :24].T)

    rows = grid.reshape(images, 3, 2, 4, 2, 24).transpose(0, 1, 3, 2, 4, 5).reshape(-1, 96)
    out = np.full((len(rows), 40), np.nan, np.float32)
    library.run("merged", [h.cast(grid, dtype), h.pack_panels(w, dtype), out], len(rows), threads)
    assert np.array_equal(out, rows @ w.T)


BATCHED = """
#include "vitc/cpu/matmul.h"
using namespace vitc;
struct Store {
  float* out; int64_t width;
  static constexpr int64_t kSlice = 0;
  struct Row { float* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * width}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, x, lanes);
  }
};
template <bool kT> using Kernel = BatchedMatmul<19, 37, 45, kT, DenseRows<TYPE, 45>, TYPE, Store>;
#define INSTANCE(name, kT, STRIDE) \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Kernel<kT>::run(c, c.batch, {arg<const TYPE>(c, 0)}, arg<const TYPE>(c, 1), STRIDE, \\
                           [](int64_t i) { return i * 37 * 45; }, {arg<float>(c, 2), 37}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return Kernel<kT>::scratch(t); }
INSTANCE(nt, true, 45)
INSTANCE(nn, false, 37)
"""


def test_batched(isa: str, dtype: str, threads: int, rng: np.random.Generator) -> None:
    library = h.KernelLibrary(BATCHED, ["nt", "nn"], isa, (f"-DTYPE={dtype}",))
    a = rng.integers(-8, 9, (4, 19, 45)).astype(np.float32)
    b = rng.integers(-8, 9, (4, 45, 37)).astype(np.float32)
    for name, right in (("nn", b), ("nt", np.ascontiguousarray(b.transpose(0, 2, 1)))):
        out = np.full((4, 19, 37), np.nan, np.float32)
        library.run(name, [h.cast(a, dtype), h.cast(right, dtype), out], 4, threads)
        assert np.array_equal(out, a @ b)
