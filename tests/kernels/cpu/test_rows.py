"""Row kernels, reductions and group norm against numpy and torch in float64."""

from __future__ import annotations

import harness as h
import numpy as np
import pytest
import torch

ROWS = """
#include "vitc/cpu/rows.h"
using namespace vitc;
constexpr int64_t kC = 200;
struct Epilogue {
  const float *weight, *bias; TYPE* out; float* squares;
  static constexpr int64_t kSlice = 64;
  struct Row { TYPE* out; Vec squares; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * kC, Vec{}}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    x = x * load(weight + n, lanes);
    x = x + load(bias + n, lanes);
    x = store(row.out + n, x, lanes);
    row.squares = row.squares + x * x;
  }
  VITC_INLINE void end_slice(Row& row, int64_t m, int64_t slice) const {
    squares[m * 4 + slice] = sum(row.squares);
    row.squares = Vec{};
  }
};
// Input rows are 260 apart.
#define ENTRY(name, OP, EPS) \\
  using Kernel_##name = RowWise<kC, RowOp::OP, DenseRows<TYPE, kC, 260>, Epilogue>; \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Kernel_##name::run(c, c.batch, {arg<const TYPE>(c, 0)}, {arg<const float>(c, 1), \\
                              arg<const float>(c, 2), arg<TYPE>(c, 3), arg<float>(c, 4)}, EPS); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return Kernel_##name::scratch(t); }
ENTRY(none, kNone, 0)
ENTRY(layer, kLayerNorm, 1e-5f)
ENTRY(rms, kRmsNorm, 1e-5f)
ENTRY(l2, kL2Norm, 1e-12f)
ENTRY(center, kCenter, 0)
ENTRY(softmax, kSoftmax, 0)
"""


def reference(name: str, x: np.ndarray) -> np.ndarray:
    mean = x.mean(-1, keepdims=True)
    if name == "layer":
        return (x - mean) / np.sqrt(x.var(-1, keepdims=True) + 1e-5)
    if name == "rms":
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-5)
    if name == "l2":
        return x / np.linalg.norm(x, axis=-1, keepdims=True)
    if name == "softmax":
        e = np.exp(x - x.max(-1, keepdims=True))
        return e / e.sum(-1, keepdims=True)
    return x - mean if name == "center" else x


OPS = ["none", "layer", "rms", "l2", "center", "softmax"]


@pytest.mark.parametrize("name", OPS)
@pytest.mark.parametrize("m", [1, 333])
def test_rows(
    isa: str, dtype: str, threads: int, name: str, m: int, rng: np.random.Generator
) -> None:
    library = h.KernelLibrary(ROWS, OPS, isa, (f"-DTYPE={dtype}",))
    x = h.cast(rng.standard_normal((m, 260)).astype(np.float32) * 3 + 5, dtype)
    weight, bias = rng.standard_normal((2, 200)).astype(np.float32)
    out, squares = h.empty((m, 200), dtype), h.empty((m, 4), "float")
    library.run(name, [x, weight, bias, out, squares], m, threads)
    want = reference(name, h.as_float(x)[:, :200]) * weight + bias
    assert h.relative_error(out, want) < (1e-6 if dtype == "float" else 3e-3)
    sums = [(h.as_float(out)[:, i : i + 64] ** 2).sum(1) for i in range(0, 200, 64)]
    assert np.allclose(squares, np.stack(sums, 1), rtol=1e-5)


REDUCE = """
#include "vitc/cpu/reduce.h"
using namespace vitc;
struct Store {
  TYPE* out; int64_t width;
  static constexpr int64_t kSlice = 0;
  struct Row { TYPE* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * width}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, x, lanes);
  }
};
// Tokens 1..196 of [B, 197, 100]; the last axis of [B, 301].
#define ENTRY(name, OP) \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Reduce<TYPE, 196, 100, ReduceOp::OP, Store>::run( \\
        c, c.batch, arg<const TYPE>(c, 0) + 100, 19700, 100, {arg<TYPE>(c, 1), 100}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int) { return 0; } \\
  extern "C" int VITC_SYMBOL(name##_last)(const Call& c) { \\
    return Reduce<TYPE, 301, 1, ReduceOp::OP, Store>::run(c, c.batch, arg<const TYPE>(c, 0), 301, \\
                                                          1, {arg<TYPE>(c, 1), 1}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_last_scratch)(int) { return 0; }
ENTRY(sum, kSum)
ENTRY(mean, kMean)
ENTRY(max, kMax)
"""


@pytest.mark.parametrize("name", ["sum", "mean", "max"])
def test_reduce(isa: str, dtype: str, threads: int, name: str, rng: np.random.Generator) -> None:
    names = [f"{op}{axis}" for op in ("sum", "mean", "max") for axis in ("", "_last")]
    library = h.KernelLibrary(REDUCE, names, isa, (f"-DTYPE={dtype}",))
    bound = 1e-6 if dtype == "float" else 3e-3
    function = {"sum": np.sum, "mean": np.mean, "max": np.max}[name]
    x = h.cast(rng.standard_normal((3, 197, 100)).astype(np.float32) - 2, dtype)
    out = h.empty((3, 100), dtype)
    library.run(name, [x, out], 3, threads)
    assert h.relative_error(out, function(h.as_float(x)[:, 1:], 1)) < bound
    x = h.cast(rng.standard_normal((3, 301)).astype(np.float32) - 2, dtype)
    out = h.empty((3, 1), dtype)
    library.run(name + "_last", [x, out], 3, threads)
    assert h.relative_error(out, function(h.as_float(x), 1, keepdims=True)) < bound


GROUP = """
#include "vitc/cpu/reduce.h"
using namespace vitc;
template <int64_t kC> struct Affine {
  const float *weight, *bias; TYPE* out;
  static constexpr int64_t kSlice = 0;
  struct Row { TYPE* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * kC}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, fma(x, load(weight + n, lanes), load(bias + n, lanes)), lanes);
  }
};
#define ENTRY(name, C, G) \\
  using Kernel_##name = GroupNorm<TYPE, 150, C, G, Affine<C>>; \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Kernel_##name::run(c, arg<const TYPE>(c, 0), {arg<const float>(c, 1), \\
                              arg<const float>(c, 2), arg<TYPE>(c, 3)}, 1e-5f); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return Kernel_##name::scratch(t); }
ENTRY(pairs, 64, 32)
ENTRY(odd, 90, 15)
ENTRY(one, 100, 1)
"""


def test_group_norm(isa: str, dtype: str, threads: int, rng: np.random.Generator) -> None:
    cases = {"pairs": (64, 32), "odd": (90, 15), "one": (100, 1)}
    library = h.KernelLibrary(GROUP, list(cases), isa, (f"-DTYPE={dtype}",))
    for name, (channels, groups) in cases.items():
        x = h.cast(rng.standard_normal((2, 150, channels)).astype(np.float32) + 4, dtype)
        weight, bias = rng.standard_normal((2, channels)).astype(np.float32)
        out = h.empty(x.shape, dtype)
        library.run(name, [x, weight, bias, out], 2, threads)
        want = torch.nn.functional.group_norm(
            torch.tensor(h.as_float(x)).transpose(1, 2),
            groups,
            torch.tensor(weight).double(),
            torch.tensor(bias).double(),
            1e-5,
        ).transpose(1, 2)
        assert h.relative_error(out, want.numpy()) < (1e-6 if dtype == "float" else 3e-3), name
