"""Convolution and pooling against torch in float64, exactly on integers."""

from __future__ import annotations

import harness as h
import numpy as np
import pytest
import torch
from torch.nn import functional

STORE = """
struct Store {
  float* out; int64_t width;
  static constexpr int64_t kSlice = 0;
  struct Row { float* out; };
  VITC_INLINE Row begin(int64_t m) const { return {out + m * width}; }
  template <class L> VITC_INLINE void apply(Vec x, Row& row, int64_t n, L lanes) const {
    store(row.out + n, x, lanes);
  }
};
"""
SHAPE = """
template <int64_t H, int64_t W, int64_t C, int64_t K, int64_t S, int64_t P, int64_t D>
struct Shape {
  static constexpr int64_t kHeight = H, kWidth = W, kChannels = C, kKernelH = K, kKernelW = K;
  static constexpr int64_t kStrideH = S, kStrideW = S, kPadTop = P, kPadLeft = P;
  static constexpr int64_t kDilationH = D, kDilationW = D;
  static constexpr int64_t kOutH = (H + 2 * P - D * (K - 1) - 1) / S + 1;
  static constexpr int64_t kOutW = (W + 2 * P - D * (K - 1) - 1) / S + 1;
};
"""
CONV = (
    """
#include "vitc/cpu/conv.h"
using namespace vitc;
"""
    + STORE
    + SHAPE
    + """
#define ENTRY(name, KERNEL, ...) \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { return KERNEL::run(c, __VA_ARGS__); } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return KERNEL::scratch(t); }
#define IMAGE arg<const TYPE>(c, 0)
#define WEIGHTS arg<const TYPE>(c, 1)
#define OUT {arg<float>(c, 2), 40}
#define PIXELS(S) c.batch * S::kOutH * S::kOutW
using Same = Shape<9, 11, 24, 3, 1, 1, 1>;
using Stem = Shape<20, 23, 3, 7, 2, 3, 1>;
using Dilated = Shape<12, 13, 8, 3, 2, 2, 2>;
using SameRows = ColumnsNhwc<TYPE, Same>;
using DilatedRows = ColumnsNhwc<TYPE, Dilated>;
using KSame = Gemm<40, SameRows::kColumns, SameRows, TYPE, Store>;
using KStem = PlanesConv<TYPE, Stem, 40, Store>;
using KDilated = Gemm<40, DilatedRows::kColumns, DilatedRows, TYPE, Store>;
using KPlanar = PlanesConv<TYPE, Dilated, 40, Store>;
using KGrouped = GroupedConv<TYPE, Same, 40, 4, TYPE, Store>;
using KDepthwise = DepthwiseConv<TYPE, Same, Store>;
ENTRY(same, KSame, PIXELS(Same), {IMAGE}, WEIGHTS, OUT)
ENTRY(stem, KStem, IMAGE, arg<const float>(c, 1), OUT)
ENTRY(dilated, KDilated, PIXELS(Dilated), {IMAGE}, WEIGHTS, OUT)
ENTRY(planar, KPlanar, IMAGE, arg<const float>(c, 1), OUT)
ENTRY(grouped, KGrouped, IMAGE, WEIGHTS, OUT)
ENTRY(depthwise, KDepthwise, IMAGE, arg<const float>(c, 1), {arg<float>(c, 2), 24})
"""
)
# name: NHWC?, channels, height, width, kernel, stride, padding, dilation, groups
CASES = {
    "same": (True, 24, 9, 11, 3, 1, 1, 1, 1),
    "stem": (False, 3, 20, 23, 7, 2, 3, 1, 1),
    "dilated": (True, 8, 12, 13, 3, 2, 2, 2, 1),
    "planar": (False, 8, 12, 13, 3, 2, 2, 2, 1),
    "grouped": (True, 24, 9, 11, 3, 1, 1, 1, 4),
    "depthwise": (True, 24, 9, 11, 3, 1, 1, 1, 24),
}


@pytest.fixture(scope="module")
def library(isa: str, dtype: str) -> h.KernelLibrary:
    return h.KernelLibrary(CONV, list(CASES), isa, (f"-DTYPE={dtype}",))


@pytest.mark.parametrize("name", CASES)
def test_convolution(library: h.KernelLibrary, dtype: str, threads: int, name: str) -> None:
    nhwc, channels, height, width, kernel, stride, padding, dilation, groups = CASES[name]
    rng = np.random.default_rng(3)
    filters = channels if name == "depthwise" else 40
    x = rng.integers(-8, 9, (2, channels, height, width)).astype(np.float32)
    w = rng.integers(-8, 9, (filters, channels // groups, kernel, kernel)).astype(np.float32)
    want = functional.conv2d(
        torch.tensor(x), torch.tensor(w), None, stride, padding, dilation, groups
    ).permute(0, 2, 3, 1)

    order = w.transpose(0, 2, 3, 1) if nhwc else w
    if name == "depthwise":
        packed = np.ascontiguousarray(w[:, 0].transpose(1, 2, 0))
    else:
        panels = np.split(order.reshape(filters, -1), groups)
        stored = dtype if nhwc else "float"
        packed = np.concatenate([h.pack_panels(p, stored).ravel() for p in panels])
    image = h.cast(x.transpose(0, 2, 3, 1) if nhwc else x, dtype)
    out = np.full(want.shape, np.nan, np.float32)
    library.run(name, [image, packed, out], 2, threads)
    assert np.array_equal(out, want.numpy())


POOL = (
    """
#include "vitc/cpu/pool.h"
using namespace vitc;
"""
    + STORE
    + SHAPE
    + """
using S = Shape<9, 11, 20, 3, 2, 1, 1>;
#define ENTRY(name, KIND) \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return Pool2d<TYPE, S, Pool::KIND, Store>::run(c, arg<const TYPE>(c, 0), \\
                                                   {arg<float>(c, 1), 20}); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int) { return 0; }
ENTRY(largest, kMax)
ENTRY(mean, kMean)
ENTRY(padded, kMeanPadded)
"""
)


def test_pooling(isa: str, dtype: str, threads: int, rng: np.random.Generator) -> None:
    library = h.KernelLibrary(POOL, ["largest", "mean", "padded"], isa, (f"-DTYPE={dtype}",))
    x = rng.integers(-8, 9, (2, 20, 9, 11)).astype(np.float32)
    t = torch.tensor(x)
    wants = {
        "largest": functional.max_pool2d(t, 3, 2, 1),
        "mean": functional.avg_pool2d(t, 3, 2, 1, count_include_pad=False),
        "padded": functional.avg_pool2d(t, 3, 2, 1),
    }
    for name, want in wants.items():
        out = np.full((2, 5, 6, 20), np.nan, np.float32)
        library.run(name, [h.cast(x.transpose(0, 2, 3, 1), dtype), out], 2, threads)
        assert np.allclose(out, want.permute(0, 2, 3, 1).numpy(), rtol=1e-6, atol=1e-6), name
