"""Attention against numpy in float64: ragged sizes, d != dv, other strides, bias, few queries,
windows of an image with a shift and padding, regions, factors, the cosine form."""

from __future__ import annotations

import harness as h
import numpy as np
import pytest
from numpy.typing import NDArray

SOURCE = """
#include "vitc/cpu/attention.h"
using namespace vitc;
template <int64_t kPerImage, int64_t kStride, int64_t kDepth>
struct Dense {
  static constexpr int64_t kHead = kDepth;
  static int64_t row(int64_t b, int64_t n) { return (b * kPerImage + n) * kStride; }
};
// Windows of 4 x 4 of a 10 x 7 image, shifted by 2, 1 and padded to 12 x 8.
template <int64_t kStride, int64_t kDepth>
struct Windows {
  static constexpr int64_t kHead = kDepth;
  static int64_t row(int64_t b, int64_t n) {
    const int64_t y = (b % 6 / 2 * 4 + n / 4 + 2) % 12, x = (b % 2 * 4 + n % 4 + 1) % 8;
    return y < 10 && x < 7 ? ((b / 6 * 10 + y) * 7 + x) * kStride : -1;
  }
};
template <bool kBiased, int64_t H, int64_t NQ, int64_t NK, int64_t D, int64_t DV>
struct Plain {
  static constexpr int64_t kHeads = H, kQueries = NQ, kKeys = NK, kDim = D, kValueDim = DV;
  static constexpr float kScale = 0.3f;
  using Query = Dense<NQ, H * D, D>;
  using Key = Dense<NK, H * D, D>;
  using Value = Dense<NK, H * DV, DV>;
  using Out = Dense<NQ, H * DV, DV>;
  static constexpr bool kBias = kBiased;
  static constexpr int64_t kBiasHead = NQ * NK, kBiasRow = NK;
  static int64_t bias_image(int64_t) { return 0; }
  static constexpr int64_t kWindows = 0;
  static constexpr float kApart = 0, kEps = 0;
  static constexpr bool kFactors = false, kCosine = false;
  static VITC_INLINE Vec finish(Vec x) { return x; }
};
struct Shifted : Plain<true, 3, 16, 16, 8, 8> {  // qkv [B, 10, 7, 3, 3, 8], out [B, 10, 7, 3, 8]
  using Query = Windows<72, 8>;
  using Key = Query;
  using Value = Query;
  using Out = Windows<24, 8>;
  static constexpr int64_t kWindows = 6;
  static constexpr float kApart = -100;
};
struct Cosine : Shifted {
  static constexpr bool kBias = false, kFactors = true, kCosine = true;
  static constexpr float kScale = 1, kEps = 1e-6f;
  static VITC_INLINE Vec finish(Vec x) { return hardswish(x); }
};
// args: q [B, NQ, H, D], k [B, NK, H, D], v [B, NK, H, DV], out [B, NQ, H, DV], bias, regions,
// factors
#define ENTRY(name, KERNEL, images, kv) \\
  extern "C" int VITC_SYMBOL(name)(const Call& c) { \\
    return KERNEL::run(c, images, arg<const TYPE>(c, 0), arg<const TYPE>(c, 1) + kv, \\
                       arg<const TYPE>(c, 2) + 2 * kv, arg<TYPE>(c, 3), arg<const float>(c, 4), \\
                       arg<const int32_t>(c, 5), arg<const float>(c, 6)); \\
  } \\
  extern "C" uint64_t VITC_SYMBOL(name##_scratch)(int t) { return KERNEL::scratch(t); }
#define INSTANCE(name, ...) \\
  using Plain_##name = Attention<TYPE, Plain<false, __VA_ARGS__>>; \\
  using Biased_##name = Attention<TYPE, Plain<true, __VA_ARGS__>>; \\
  ENTRY(name, Plain_##name, c.batch, 0) ENTRY(name##_bias, Biased_##name, c.batch, 0)
using ShiftedKernel = Attention<TYPE, Shifted>;
using CosineKernel = Attention<TYPE, Cosine>;
ENTRY(shifted, ShiftedKernel, 6 * c.batch, 24)
ENTRY(cosine, CosineKernel, 6 * c.batch, 24)
"""
SHAPES = {  # heads, queries, keys, d, dv
    "square": (3, 50, 50, 64, 64),
    "ragged": (2, 37, 61, 18, 35),
    "pooling": (4, 1, 197, 32, 32),
    "window": (2, 49, 49, 32, 32),
    "long": (1, 30, 700, 80, 256),
}
TOLERANCE = {"float": 2e-6, "bf16": 3e-3}


@pytest.fixture(scope="module")
def library(isa: str, dtype: str) -> h.KernelLibrary:
    text = "".join(f"INSTANCE({n}, {', '.join(map(str, s))})\n" for n, s in SHAPES.items())
    names = [*SHAPES, *(f"{name}_bias" for name in SHAPES), "shifted", "cosine"]
    return h.KernelLibrary(SOURCE + text, names, isa, (f"-DTYPE={dtype}",))


def softmax(scores: NDArray) -> NDArray:
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


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
    bias[0, 0, : keys // 2] = -np.inf
    out = h.empty((2, queries, heads, dv), dtype)
    entry = f"{name}_bias" if biased else name
    library.run(entry, [*stored, out, bias, None, None], 2, threads)

    q, k, v = (h.as_float(x).transpose(0, 2, 1, 3) for x in stored)
    scores = 0.3 * q @ k.transpose(0, 1, 3, 2) + (bias if biased else 0)
    want = (softmax(scores) @ v).transpose(0, 2, 1, 3)
    assert h.relative_error(out, want) < TOLERANCE[dtype]


def test_large_scores_do_not_overflow(library: h.KernelLibrary, dtype: str) -> None:
    """One score of about 1e4 above the others: its value alone comes out."""
    heads, queries, _, d, _ = SHAPES["square"]
    q = np.zeros((1, queries, heads, d), np.float32)
    k, v = np.zeros_like(q), np.random.default_rng(1).integers(-4, 5, q.shape).astype(np.float32)
    q[..., 0], k[:, 7, :, 0] = 256, 128
    out = h.empty(v.shape, dtype)
    library.run("square", [*(h.cast(x, dtype) for x in (q, k, v)), out, *[None] * 3], 1)
    assert np.array_equal(h.as_float(out), np.broadcast_to(v[:, 7:8], v.shape))


# ---- windows of an image, by numpy: tokens [6 B, 16, ...] of [B, 10, 7, ...] -------------------
def windows(x: NDArray) -> NDArray:
    tail = x.shape[3:]
    x = np.pad(x, [(0, 0), (0, 2), (0, 1), *[(0, 0) for _ in tail]])
    x = np.roll(x, (-2, -1), (1, 2)).reshape(-1, 3, 4, 2, 4, *tail)
    return np.moveaxis(x, 3, 2).reshape(-1, 16, *tail)


def image(x: NDArray) -> NDArray:
    tail = x.shape[2:]
    x = np.moveaxis(x.reshape(-1, 3, 2, 4, 4, *tail), 2, 3).reshape(-1, 12, 8, *tail)
    return np.roll(x, (2, 1), (1, 2))[:, :10, :7]


def shift_regions() -> NDArray[np.int32]:
    """[6, 16]: the parts that a shift by 2, 1 brings together, four in the last window."""
    rows, columns = np.repeat([0, 1, 2], [8, 2, 2]), np.repeat([0, 1, 2], [4, 3, 1])
    both = (3 * rows[:, None] + columns).reshape(1, 3, 4, 2, 4)
    return np.ascontiguousarray(np.moveaxis(both, 3, 2).reshape(6, 16), np.int32)


def test_shifted_windows(library: h.KernelLibrary, dtype: str, threads: int) -> None:
    rng = np.random.default_rng(5)
    qkv = h.cast(rng.standard_normal((2, 10, 7, 3, 3, 8)).astype(np.float32), dtype)
    bias = rng.standard_normal((3, 16, 16)).astype(np.float32)
    regions, out = shift_regions(), h.empty((2, 10, 7, 3, 8), dtype)
    library.run("shifted", [qkv, qkv, qkv, out, bias, regions, None], 2, threads)

    q, k, v = np.moveaxis(windows(h.as_float(qkv)), (2, 3), (0, 2))
    mask = np.where(regions[:, :, None] != regions[:, None], -100.0, 0.0)
    scores = 0.3 * q @ k.swapaxes(-1, -2) + bias + np.tile(mask, (2, 1, 1))[:, None]
    want = image((softmax(scores) @ v).swapaxes(1, 2))
    assert h.relative_error(out, want) < TOLERANCE[dtype]


def test_windows_exactly(library: h.KernelLibrary, dtype: str, threads: int) -> None:
    """A bias that leaves one key of each query: its value comes out at the query's own place."""
    rng = np.random.default_rng(6)
    qkv = rng.integers(-4, 5, (2, 10, 7, 3, 3, 8)).astype(np.float32)
    chosen = rng.integers(0, 16, (3, 16))
    bias = np.full((3, 16, 16), -3000, np.float32)
    np.put_along_axis(bias, chosen[..., None], 3000, -1)
    none_apart, out = np.zeros((6, 16), np.int32), h.empty((2, 10, 7, 3, 8), dtype)
    stored = h.cast(qkv, dtype)
    library.run("shifted", [stored, stored, stored, out, bias, none_apart, None], 2, threads)
    v = windows(qkv[:, :, :, 2])
    picked = np.stack([v[:, chosen[head], head] for head in range(3)], 2)
    assert np.array_equal(h.as_float(out), image(picked))


def test_cosine(library: h.KernelLibrary, dtype: str, threads: int) -> None:
    """Padded rows have norm 0: they are divided by eps."""
    rng = np.random.default_rng(7)
    qkv = h.cast(3 * rng.standard_normal((2, 10, 7, 3, 3, 8)).astype(np.float32), dtype)
    factors = np.array([1.5, 7.0, 90.0], np.float32)
    regions, out = shift_regions(), h.empty((2, 10, 7, 3, 8), dtype)
    library.run("cosine", [qkv, qkv, qkv, out, None, regions, factors], 2, threads)

    q, k, v = np.moveaxis(windows(h.as_float(qkv)), (2, 3), (0, 2))
    q, k = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-6) for x in (q, k))
    mask = np.where(regions[:, :, None] != regions[:, None], -100.0, 0.0)
    scores = factors[:, None, None] * (q @ k.swapaxes(-1, -2)) + np.tile(mask, (2, 1, 1))[:, None]
    mixed = softmax(scores) @ v
    want = image((mixed * np.clip(mixed + 3, 0, 6) / 6).swapaxes(1, 2))
    assert h.relative_error(out, want) < 3 * TOLERANCE[dtype]
