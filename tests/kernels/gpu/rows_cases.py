"""The functions of rowwise.cuh, and its convolution as a source of the GEMM."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kernels.gpu.attention_cases import softmax
from kernels.gpu.case import CPP, Case, compare, decode, draw, emitting, encode, poison, statistics
from kernels.gpu.gemm_cases import PLAIN, Tile, functor, program, tile
from numpy.typing import NDArray

DTYPES = ("float32", "float16", "bfloat16")
HEADER = "vitc/gpu/rowwise.cuh"
BOTH = 'vitc/gpu/gemm.cuh"\n#include "vitc/gpu/rowwise.cuh'
AFFINE = "gpu::multiply(v, w + n);\n    gpu::add(v, b + n);"


def text(
    dtype: str,
    n: int,
    launch: str,
    *,
    steps: str = "",
    before: str = "",
    stats: int = 0,
    sums: bool = False,
) -> str:
    """args: x, w, b, out and, with stats, statistics of slices of that many columns."""
    emitted = emitting(stats, n, sums=sums) if stats else "  float* stats;"
    return f"""
using gpu::half;
using gpu::bfloat16;
using T = {CPP[dtype]};
constexpr int kN = {n};
{before}
struct Epilogue : gpu::NoRowTerms {{
  const T *w, *b;
  T* out;
{emitted}
  template <int V>
  VITC_DEVICE void operator()(int m, int n, float (&v)[V], float) const {{
    {steps}
    gpu::write(out + m * kN + n, v);
  }}
}};
extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  Epilogue epilogue;
  epilogue.w = (const T*)args[1], epilogue.b = (const T*)args[2];
  epilogue.out = (T*)args[3], epilogue.stats = (float*)args[4];
  const T* x = (const T*)args[0];
  const int m = int(sizes[0]);
  {launch}
}}
"""


def case(
    name: str,
    dtype: str,
    source: str,
    x: NDArray,
    want: NDArray,
    rows: int,
    *,
    affine: Sequence[NDArray] | None = None,
    stats: int = 0,
    sums: bool = False,
) -> Case:
    parts = statistics(want, stats, sums=sums).shape[1] if stats else 1
    nothing = np.zeros(1, np.float32)
    w, b = affine or (nothing, nothing)
    arrays = [x, w, b, poison(want.shape, dtype), poison((rows, parts), "float32")]

    def check(after: Sequence[NDArray]) -> None:
        compare(after[3], want, dtype, exact=False)
        if stats:
            stored = statistics(decode(after[3], dtype), stats, sums=sums)
            np.testing.assert_allclose(after[4], stored, rtol=1e-4, atol=1e-5)

    return Case(f"{name} {dtype}", source, arrays, check, (rows,), 75, header=HEADER)


def row_launch(op: str, stats: int = 0, source: str = "gpu::MatrixRows<T, kN>") -> str:
    call = f'gpu::rowwise<kN, gpu::RowOp::{op}, {stats}>("{op}", nullptr, m'
    return f"return {call}, {source}{{x}}, epilogue, 1e-6f);"


def normalised(x: NDArray, *, centre: bool) -> NDArray:
    centred = x - x.mean(-1, keepdims=True) if centre else x
    return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-6)


def norm(
    dtype: str, n: int, *, centre: bool, affine: bool, stats: int = 0, sums: bool = False
) -> Case:
    rows = 11
    x, xv = draw((rows, n), dtype, 31, exact=False)
    w, wv = draw((n,), dtype, 32, exact=False)
    b, bv = draw((n,), dtype, 33, exact=False)
    want = normalised(xv, centre=centre)
    want = want * wv + bv if affine else want
    launch = row_launch("kLayerNorm" if centre else "kRmsNorm", stats)
    source = text(dtype, n, launch, steps=AFFINE if affine else "", stats=stats, sums=sums)
    emitted = f" with{' sums and' if sums else ''} statistics of {stats}" if stats else ""
    name = f"{'layer' if centre else 'rms'} norm of {n}{emitted}"
    return case(name, dtype, source, x, want, rows, affine=(w, b), stats=stats, sums=sums)


def picked_norm(dtype: str) -> Case:
    """The class token of each image, normalised: rows by a functor."""
    x, xv = draw((3 * 5, 64), dtype, 34, exact=False)
    before = functor(dtype, "r * 320", "k", vector=True)
    source = text(dtype, 64, row_launch("kLayerNorm", source="Source"), before=before)
    return case("norm of every fifth row", dtype, source, x, normalised(xv[::5], centre=True), 3)


def gather(dtype: str) -> Case:
    """Rows of 16 in reverse order, every third one zeros."""
    x, xv = draw((10, 16), dtype, 42, exact=False)
    want = np.where((np.arange(10) % 3 == 2)[:, None], 0, xv[::-1])
    before = functor(dtype, "r % 3 == 2 ? -1 : (9 - r) * 16", "k", vector=True)
    source = text(dtype, 16, row_launch("kNone", source="Source"), before=before)
    return case("gather", dtype, source, x, want, 10)


def rows_of(dtype: str, n: int, op: str) -> Case:
    x, xv = draw((9, n), dtype, 35, exact=False)
    want = softmax(xv) if op == "kSoftmax" else xv - xv.mean(-1, keepdims=True)
    return case(f"{op} of {n}", dtype, text(dtype, n, row_launch(op)), x, want, 9)


def group_norm(dtype: str) -> Case:
    images, channels, positions, groups = 2, 24, 35, 4
    x, xv = draw((images, positions, channels), dtype, 36, exact=False)
    w, wv = draw((channels,), dtype, 37, exact=False)
    b, bv = draw((channels,), dtype, 38, exact=False)
    grouped = xv.reshape(images, positions, groups, -1)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    want = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    want = want.reshape(xv.shape) * wv + bv
    call = f'gpu::group_norm<{positions}, {channels}, {groups}>("group norm", nullptr, m'
    source = text(dtype, channels, f"return {call}, x, epilogue, 1e-5f);", steps=AFFINE)
    return case("group norm", dtype, source, x, want, images, affine=(w, b))


def reduction(dtype: str, kind: str, outer: int, reduced: int, inner: int) -> Case:
    x, xv = draw((outer, reduced, inner), dtype, 39, exact=False)
    want = {"kMean": xv.mean(1), "kSum": xv.sum(1), "kMax": xv.max(1)}[kind]
    value = f"gpu::ReduceAxis<T, gpu::Reduction::{kind}, {reduced}, {reduced * inner}, {inner}>"
    call = f'return gpu::elementwise<kN>("reduce", nullptr, m, {value}{{x}}, epilogue);'
    name = f"{kind} {outer} x {reduced} x {inner}"
    return case(name, dtype, text(dtype, inner, call), x, want, outer)


def rows_cases(dtype: str) -> list[Case]:
    return [
        norm(dtype, 192, centre=True, affine=True, stats=64),
        norm(dtype, 104, centre=True, affine=True, stats=32, sums=True),
        norm(dtype, 768, centre=True, affine=False),
        norm(dtype, 50, centre=True, affine=True),
        norm(dtype, 33, centre=False, affine=False),
        picked_norm(dtype),
        gather(dtype),
        rows_of(dtype, 197, "kSoftmax"),
        rows_of(dtype, 64, "kCenter"),
        group_norm(dtype),
        reduction(dtype, "kMean", 3, 49, 40),
        reduction(dtype, "kSum", 9, 70, 1),
        reduction(dtype, "kMax", 3, 17, 24),
    ]


def conv_program(
    t: Tile, channels: int, n: int, size: int, kernel: int, stride: int, pad: int, *, planes: bool
) -> str:
    """args: square images, W in rows of whole chunks, out; planes: images lie as [B, C, H, W]."""
    chunk = 16 // encode(np.zeros(1), t.dtype).itemsize
    depth = -(-kernel * kernel * channels // chunk) * chunk
    side = (size + 2 * pad - kernel) // stride + 1
    steps = (1, size * size, size) if planes else (channels, 1, size * channels)
    source = f"""struct Shape {{
  static constexpr int kHeight = {size}, kWidth = {size}, kChannels = {channels};
  static constexpr int kKernelH = {kernel}, kKernelW = {kernel};
  static constexpr int kStrideH = {stride}, kStrideW = {stride};
  static constexpr int kPadTop = {pad}, kPadLeft = {pad}, kDilationH = 1, kDilationW = 1;
  static constexpr int kOutH = {side}, kOutW = {side};
  static constexpr int kImageStride = {size * size * channels}, kRowStride = {steps[2]};
  static constexpr int kPixelStride = {steps[0]}, kChannelStride = {steps[1]};
  static constexpr bool kVector = {"true" if channels % chunk == 0 and not planes else "false"};
}};
using Source = gpu::WindowRows<T, Shape, {depth}>;"""
    return program(
        t,
        n,
        depth,
        source=source,
        epilogue=PLAIN,
        members="T* out;",
        arguments="epilogue.out = (T*)args[2];",
    )


def conv(
    form: str, channels: int, size: int, kernel: int, stride: int, pad: int, *, planes: bool = False
) -> Case:
    t = tile(form)
    images, n = 2, 40
    x, xv = draw((images, size, size, channels), t.dtype, 43, exact=True)
    w, wv = draw((n, kernel, kernel, channels), t.dtype, 44, exact=True)
    depth = kernel * kernel * channels
    w = np.pad(w.reshape(n, depth), ((0, 0), (0, -depth % (16 // w.itemsize))))
    padded = np.pad(xv, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]  # [image, y, x, c, ky, kx]
    want = np.einsum("iyxcab,nabc->iyxn", windows, wv)
    m = want.size // n

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want.reshape(m, n), t.dtype, exact=True)

    layout = " in planes" if planes else ""
    name = f"conv {kernel}x{kernel} stride {stride} pad {pad} of {channels} channels{layout} {form}"
    stored = np.moveaxis(x, -1, 1).copy() if planes else x
    body = conv_program(t, channels, n, size, kernel, stride, pad, planes=planes)
    out = poison((m, n), t.dtype)
    return Case(name, body, [stored, w, out], check, (m,), t.arch, header=BOTH)


def conv_cases(form: str) -> list[Case]:
    return [
        conv(form, 16, 9, 3, 2, 1),
        conv(form, 8, 7, 3, 1, 1),
        conv(form, 3, 12, 3, 2, 1),
        conv(form, 3, 14, 7, 4, 3),
        conv(form, 32, 8, 2, 2, 0),
        conv(form, 3, 13, 3, 2, 1, planes=True),
    ]
