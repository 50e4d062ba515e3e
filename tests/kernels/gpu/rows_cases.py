"""Row kernels and convolutions."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from kernels.gpu.attention_cases import softmax
from kernels.gpu.case import CPP, Case, compare, draw, poison
from kernels.gpu.gemm_cases import PLAIN, program, tile
from numpy.typing import NDArray

DTYPES = ("float32", "float16", "bfloat16")
HEADER = "vitc/gpu/rows.cuh"


def text(dtype: str, body: str, before: str = "") -> str:
    kind = CPP[dtype] if dtype == "float32" else f"gpu::{CPP[dtype]}"
    return f"""
using T = {kind};
{before}
extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  (void)sizes;
  {body}
}}
"""


def case(name: str, dtype: str, source: str, arrays: list, want: NDArray, *sizes: int) -> Case:
    """The output is the last array."""
    arrays = [*arrays, poison(want.shape, dtype)]

    def check(after: Sequence[NDArray]) -> None:
        compare(after[-1], want, dtype, exact=False)

    return Case(f"{name} {dtype}", source, arrays, check, sizes, 75, header=HEADER)


def norm(dtype: str, n: int, *, centre: bool, affine: bool) -> Case:
    rows, eps = 11, 1e-6
    x, xv = draw((rows, n), dtype, 31, exact=False)
    w, wv = draw((n,), dtype, 32, exact=False)
    b, bv = draw((n,), dtype, 33, exact=False)
    mean = xv.mean(-1, keepdims=True) if centre else 0
    want = (xv - mean) / np.sqrt(((xv - mean) ** 2).mean(-1, keepdims=True) + eps)
    want = want * wv + bv if affine else want
    operands = "(T*)args[1], (T*)args[2]" if affine else "(T*)nullptr, (T*)nullptr"
    body = (
        f'return gpu::norm_rows<{n}, {str(centre).lower()}>("norm", nullptr, int(sizes[0]), '
        f"(const T*)args[0], {operands.replace('(T*)', '(const T*)')}, (T*)args[3], 1e-6f);"
    )
    kind = "layer" if centre else "rms"
    return case(f"{kind} norm of {n}", dtype, text(dtype, body), [x, w, b], want, rows)


def mapped_norm(dtype: str) -> Case:
    """The class token of each image, normalised."""
    x, xv = draw((3 * 5, 64), dtype, 34, exact=False)
    picked = xv[::5]
    want = picked - picked.mean(-1, keepdims=True)
    want /= np.sqrt((want**2).mean(-1, keepdims=True) + 1e-6)
    before = "struct First { VITC_DEVICE int operator()(int row) const { return row * 5; } };"
    body = (
        'return gpu::norm_rows<64>("norm", nullptr, 3, (const T*)args[0], (const T*)nullptr, '
        "(const T*)nullptr, (T*)args[1], 1e-6f, First{});"
    )
    return case("norm of every fifth row", dtype, text(dtype, body, before), [x], want)


def row_softmax(dtype: str, n: int) -> Case:
    x, xv = draw((9, n), dtype, 35, exact=False)
    body = (
        f'return gpu::softmax_rows<{n}>("softmax", nullptr, 9, (const T*)args[0], '
        "(T*)args[1], 1.5f);"
    )
    return case(f"softmax of {n}", dtype, text(dtype, body), [x], softmax(xv * 1.5))


def group_norm(dtype: str, *, last: bool) -> Case:
    images, channels, positions, groups = 2, 24, 35, 4
    x, xv = draw((images, positions, channels), dtype, 36, exact=False)
    w, wv = draw((channels,), dtype, 37, exact=False)
    b, bv = draw((channels,), dtype, 38, exact=False)
    grouped = xv.reshape(images, positions, groups, -1)
    centred = grouped - grouped.mean((1, 3), keepdims=True)
    want = centred / np.sqrt((centred**2).mean((1, 3), keepdims=True) + 1e-5)
    want = want.reshape(xv.shape) * wv + bv
    if not last:
        x, want = np.ascontiguousarray(x.swapaxes(1, 2)), want.swapaxes(1, 2)
    body = (
        f"return gpu::group_norm<{channels}, {positions}, {groups}, {str(last).lower()}>("
        f'"group norm", nullptr, {images}, (const T*)args[0], (const T*)args[1], '
        "(const T*)args[2], (T*)args[3], 1e-5f);"
    )
    return case(
        f"group norm {'NHWC' if last else 'NCHW'}", dtype, text(dtype, body), [x, w, b], want
    )


def reduction(dtype: str, kind: str, outer: int, reduced: int, inner: int) -> Case:
    x, xv = draw((outer, reduced, inner), dtype, 39, exact=False)
    want = {"SumOf": xv.sum(1) / reduced + 0, "MaxOf": xv.max(1)}[kind]
    factor = 1 / reduced if kind == "SumOf" else 1.0
    body = (
        f'return gpu::reduce<gpu::{kind}, {reduced}, {inner}>("reduce", nullptr, {outer}, '
        f"(const T*)args[0], (T*)args[1], {factor!r}f);"
    )
    return case(f"{kind} {outer} x {reduced} x {inner}", dtype, text(dtype, body), [x], want)


def pointwise(dtype: str) -> Case:
    """a * sigmoid(b) with b broadcast over rows, four elements at once."""
    a, av = draw((13, 40), dtype, 40, exact=False)
    b, bv = draw((40,), dtype, 41, exact=False)
    before = """struct Gate {
  const T *a, *b;
  T* out;
  VITC_DEVICE void operator()(int64_t first) const {
    float v[4], gate[4];
    gpu::load_floats<4>(v, a + first);
    gpu::load_floats<4>(gate, b + first % 40);
    for (int i = 0; i < 4; ++i) v[i] *= gpu::Sigmoid::apply(gate[i]);
    gpu::store_floats<4>(out + first, v);
  }
};"""
    body = (
        'return gpu::pointwise<4>("gate", nullptr, 520, Gate{(const T*)args[0], (const T*)args[1], '
        "(T*)args[2]});"
    )
    return case("pointwise", dtype, text(dtype, body, before), [a, b], av / (1 + np.exp(-bv)))


def gather(dtype: str, width: int) -> Case:
    """Rows of 16 in reverse order, every third one zeros."""
    x, xv = draw((10, 16), dtype, 42, exact=False)
    want = np.where((np.arange(10) % 3 == 2)[:, None], 0, xv[::-1])
    before = """struct Reverse {
  VITC_DEVICE int64_t operator()(int64_t i) const {
    return i / 16 % 3 == 2 ? -1 : (9 - i / 16) * 16 + i % 16;
  }
};"""
    body = (
        f'return gpu::gather<{width}>("gather", nullptr, 160, (const T*)args[0], (T*)args[1], '
        "Reverse{});"
    )
    return case(f"gather by {width}", dtype, text(dtype, body, before), [x], want)


def rows_cases(dtype: str) -> list[Case]:
    wide = 16 // np.dtype(np.float32 if dtype == "float32" else np.float16).itemsize
    return [
        norm(dtype, 192, centre=True, affine=True),
        norm(dtype, 768, centre=True, affine=False),
        norm(dtype, 50, centre=True, affine=True),
        norm(dtype, 128, centre=False, affine=True),
        norm(dtype, 33, centre=False, affine=False),
        mapped_norm(dtype),
        row_softmax(dtype, 197),
        row_softmax(dtype, 64),
        group_norm(dtype, last=True),
        group_norm(dtype, last=False),
        reduction(dtype, "SumOf", 3, 49, 40),
        reduction(dtype, "SumOf", 9, 70, 1),
        reduction(dtype, "MaxOf", 3, 17, 24),
        reduction(dtype, "MaxOf", 5, 100, 1),
        pointwise(dtype),
        gather(dtype, wide),
        gather(dtype, 1),
    ]


def conv(form: str, channels: int, size: int, kernel: int, stride: int, pad: int) -> Case:
    t = tile(form)
    images, n = 2, 40
    x, xv = draw((images, size, size, channels), t.dtype, 43, exact=True)
    w, wv = draw((n, kernel, kernel, channels), t.dtype, 44, exact=True)
    padded = np.pad(xv, ((0, 0), (pad, pad), (pad, pad), (0, 0)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (kernel, kernel), axis=(1, 2))
    windows = windows[:, ::stride, ::stride]  # [image, y, x, c, ky, kx]
    want = np.einsum("iyxcab,nabc->iyxn", windows, wv)
    m = want.size // n
    source = (
        f"using Source = gpu::ConvRows<T, {channels}, {size}, {size}, {kernel}, {kernel}, "
        f"{stride}, {stride}, {pad}, {pad}>;"
    )
    body = program(
        t,
        n,
        channels * kernel * kernel,
        source=source,
        epilogue=PLAIN,
        members="T* out;",
        arguments="epilogue.out = (T*)args[2];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want.reshape(m, n), t.dtype, exact=True)

    name = f"conv {kernel}x{kernel} stride {stride} pad {pad} of {channels} channels {form}"
    out = poison((m, n), t.dtype)
    return Case(name, body, [x, w, out], check, (m,), t.arch, header="vitc/gpu/conv.cuh")


def conv_cases(form: str) -> list[Case]:
    return [
        conv(form, 16, 9, 3, 2, 1),
        conv(form, 8, 7, 3, 1, 1),
        conv(form, 3, 12, 3, 2, 1),
        conv(form, 3, 14, 7, 4, 3),
        conv(form, 32, 8, 2, 2, 0),
    ]
