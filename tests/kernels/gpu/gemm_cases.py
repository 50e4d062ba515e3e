"""GEMM cases: every form, exact and random, whole and ragged, every epilogue step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kernels.gpu.case import CPP, Case, compare, decode, draw, emitting, poison, statistics
from numpy.typing import NDArray

POLICY = {
    "float16": "gpu::Mma<gpu::half>",
    "bfloat16": "gpu::Mma<gpu::bfloat16>",
    "tf32": "gpu::Tf32",
    "float32": "gpu::Tf32x3",
    "float16 sm_75": "gpu::Mma<gpu::half, 8>",
    "float32 sm_75": "gpu::Simt",
}


@dataclass(frozen=True)
class Tile:
    """GemmTile's parameters; `form` is a key of POLICY."""

    form: str
    bm: int = 64
    bn: int = 64
    bk: int = 32
    warps_m: int = 2
    warps_n: int = 2
    stages: int = 3

    @property
    def dtype(self) -> str:
        return self.form.split()[0]

    @property
    def arch(self) -> int:
        return 75 if "sm_75" in self.form else 80

    @property
    def cpp(self) -> str:
        stages, copies = (2, "false") if self.arch == 75 else (self.stages, "true")
        numbers = (self.bm, self.bn, self.bk, self.warps_m, self.warps_n, stages)
        listed = ", ".join(map(str, numbers))
        return f"gpu::GemmTile<{POLICY[self.form]}, {listed}, {copies}>"

    @property
    def slice(self) -> int:
        return self.bn // self.warps_n


FORMS = tuple(POLICY)


def tile(form: str, **sizes: int) -> Tile:
    """A tile whose rows are 64 bytes for every dtype, unless stated otherwise."""
    wide = CPP[form.split()[0]] == "float"
    return Tile(form, **({"bk": 16 if wide else 32} | sizes))


def program(
    tile: Tile, n: int, k: int, *, source: str, epilogue: str, arguments: str, members: str = ""
) -> str:
    """args: A, W, out, then whatever `arguments` (of the epilogue's members) names; sizes: m."""
    return f"""
using gpu::half;
using gpu::bfloat16;
using T = {CPP[tile.dtype]};
using Tile = {tile.cpp};
constexpr int kN = {n}, kK = {k};
{source}
struct Epilogue : gpu::NoRowTerms {{
  {members}
{epilogue}
}};
extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  Epilogue epilogue;
  {arguments}
  return gpu::gemm<Tile, kN, kK>("gemm", nullptr, int(sizes[0]),
                                 Source{{(const Source::T*)args[0]}}, (const T*)args[1], epilogue);
}}
"""


PLAIN_SOURCE = "using Source = gpu::MatrixRows<T, kK>;"
PLAIN = """  template <int V>
  VITC_DEVICE void operator()(int row, int column, float (&v)[V], float) const {
    gpu::write(out + row * kN + column, v);
  }"""


def plain(
    name: str, tile: Tile, m: int, n: int, k: int, *, exact: bool, out: str | None = None
) -> Case:
    """Y = A W^T, stored in `out` (default: the operands' dtype)."""
    out = out or tile.dtype
    a, av = draw((m, k), tile.dtype, 1, exact=exact)
    w, wv = draw((n, k), tile.dtype, 2, exact=exact)
    want = av @ wv.T
    text = program(
        tile,
        n,
        k,
        source=PLAIN_SOURCE,
        epilogue=PLAIN,
        members=f"{CPP[out]}* out;",
        arguments=f"epilogue.out = ({CPP[out]}*)args[2];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want, out, exact=exact, factor=1 if tile.dtype == out else 500)

    return Case(name, text, [a, w, poison((m, n), out)], check, (m,), tile.arch, 2 * m * n * k)


def gelu(x: NDArray) -> NDArray:
    return x * 0.5 * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


ACTIVATIONS = {
    "Relu": lambda x: np.maximum(x, 0),
    "GeluErf": gelu,
    "GeluErfHalf": gelu,
    "GeluTanh": lambda x: 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))),
    "GeluTanhHalf": lambda x: (
        0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))
    ),
    "GeluQuick": lambda x: x / (1 + np.exp(-1.702 * x)),
    "Silu": lambda x: x / (1 + np.exp(-x)),
    "HardSwish": lambda x: x * np.clip(x + 3, 0, 6) / 6,
}


def activation(form: str, name: str) -> Case:
    """bias and an activation."""
    t = tile(form)
    m, n, k = 70, 64, 48
    a, av = draw((m, k), t.dtype, 3, exact=False)
    w, wv = draw((n, k), t.dtype, 4, exact=False)
    bias, bv = draw((n,), t.dtype, 5, exact=False)
    want = ACTIVATIONS[name](av @ wv.T / 4 + bv)
    epilogue = f"""  template <int V>
  VITC_DEVICE void operator()(int row, int column, float (&v)[V], float) const {{
    gpu::scale(v, 0.25f);
    gpu::add(v, bias + column);
    gpu::apply<gpu::{name}>(v);
    gpu::write(out + row * kN + column, v);
  }}"""
    text = program(
        t,
        n,
        k,
        source=PLAIN_SOURCE,
        epilogue=epilogue,
        members="const T* bias;\n  T* out;",
        arguments="epilogue.out = (T*)args[2];\n  epilogue.bias = (const T*)args[3];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want, t.dtype, exact=False)

    return Case(f"{name} {form}", text, [a, w, poison((m, n), t.dtype), bias], check, (m,), t.arch)


def norm_chain(form: str, n: int, *, sums: bool = False, chosen: Tile | None = None) -> Case:
    """rstd from statistics, bias, gate, periodic table, residual, and statistics out."""
    t = chosen or tile(form)
    m, k, period = 70, 128, 10
    a, av = draw((m, k), t.dtype, 6, exact=False)
    w, wv = draw((n, k), t.dtype, 7, exact=False)
    bias, bv = draw((n,), t.dtype, 8, exact=False)
    gate, gv = draw((m, n), t.dtype, 9, exact=False)
    table, tv = draw((period, n), t.dtype, 10, exact=False)
    residual, rv = draw((m, n), t.dtype, 11, exact=False)
    ov = draw((m, k), t.dtype, 12, exact=False)[1] + 3.0  # a mean of three deviations
    given = statistics(ov, 48, sums=sums).astype(np.float32)
    variance = ov.var(1) if sums else (ov**2).mean(1)
    want = (
        (av @ wv.T / np.sqrt(variance + 1e-6)[:, None] + bv) * gv + tv[np.arange(m) % period] + rv
    )
    epilogue = f"""  VITC_DEVICE float row_scale(int row) const {{
    return gpu::rstd<Statistics, {given.shape[1]}, {given.shape[1]}>(
        given, [&](int) {{ return row * {given.shape[1]}; }}, 1.f / {k}, 1e-6f);
  }}
  template <int V>
  VITC_DEVICE void operator()(int row, int column, float (&v)[V], float row_scale) const {{
    gpu::scale(v, row_scale);
    gpu::add(v, bias + column);
    gpu::multiply(v, gate + row * kN + column);
    gpu::add(v, table + row % {period} * kN + column);
    gpu::add(v, residual + row * kN + column);
    gpu::write(out + row * kN + column, v);
  }}"""
    names = ("out", "bias", "gate", "table", "residual")
    text = program(
        t,
        n,
        k,
        source=PLAIN_SOURCE,
        epilogue=epilogue,
        members="static constexpr bool kRowScale = true;\n"
        "  T *out, *bias, *gate, *table, *residual;\n  float* given;\n"
        + emitting(t.slice, n, sums=sums),
        arguments="".join(f"epilogue.{x} = (T*)args[{i}];\n  " for i, x in enumerate(names, 2))
        + "epilogue.given = (float*)args[7];\n  epilogue.stats = (float*)args[8];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want, t.dtype, exact=False, factor=1.5)
        stored = statistics(decode(arrays[2], t.dtype), t.slice, sums=sums)
        np.testing.assert_allclose(arrays[8], stored, rtol=1e-4, atol=1e-4)

    out = poison((m, n), t.dtype)
    left = poison(statistics(want, t.slice, sums=sums).shape, "float32")
    arrays = [a, w, out, bias, gate, table, residual, given, left]
    return Case(f"norm chain {form} n={n} sums={sums}", text, arrays, check, (m,), t.arch)


def exact_statistics(form: str, n: int) -> Case:
    """Integers, and their sums and sums of squares."""
    t = tile(form)
    m, k = 75, 40
    a, av = draw((m, k), t.dtype, 16, exact=True)
    w, wv = draw((n, k), t.dtype, 17, exact=True)
    want = av @ wv.T
    text = program(
        t,
        n,
        k,
        source=PLAIN_SOURCE,
        epilogue=PLAIN,
        members="T* out;\n" + emitting(t.slice, n, sums=True),
        arguments="epilogue.out = (T*)args[2];\n  epilogue.stats = (float*)args[3];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want, t.dtype, exact=True)
        compare(arrays[3], statistics(want, t.slice, sums=True), "float32", exact=True)

    left = poison(statistics(want, t.slice, sums=True).shape, "float32")
    arrays = [a, w, poison((m, n), t.dtype), left]
    return Case(f"exact statistics {form} n={n}", text, arrays, check, (m,), t.arch)


def functor(dtype: str, row: str, column: str, *, vector: bool) -> str:
    """A source as generated text has it: `row` an offset in r, or -1 for zeros; `column` in k."""
    return f"""struct Source {{
  using T = {CPP[dtype]};
  static constexpr bool kVector = {str(vector).lower()};
  const T* data;
  struct Row {{
    int offset;
  }};
  VITC_DEVICE Row row(int r) const {{ return {{{row}}}; }}
  VITC_DEVICE int at(Row row, int k) const {{
    return row.offset < 0 ? -1 : row.offset + {column};
  }}
  VITC_DEVICE const T* base() const {{ return data; }}
}};"""


def mapped_rows(form: str) -> Case:
    """A's rows renamed by a map; every fifth row is zeros."""
    t = tile(form)
    m, n, k, rows = 75, 32, 64, 20
    a, av = draw((rows, k), t.dtype, 13, exact=True)
    w, wv = draw((n, k), t.dtype, 14, exact=True)
    index = np.arange(m)
    want = np.where((index % 5 == 4)[:, None], 0, av[index * 7 % rows]) @ wv.T
    source = functor(t.dtype, f"r % 5 == 4 ? -1 : r * 7 % {rows} * {k}", "k", vector=True)
    text = program(
        t,
        n,
        k,
        source=source,
        epilogue=PLAIN,
        members="T* out;",
        arguments="epilogue.out = (T*)args[2];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want, t.dtype, exact=True)

    return Case(f"mapped rows {form}", text, [a, w, poison((m, n), t.dtype)], check, (m,), t.arch)


def patches(form: str, patch: int, size: int, image_dtype: str | None = None) -> Case:
    """Patch embedding of NCHW images, of the operands' dtype or another one."""
    t = tile(form)
    images, channels, n = 2, 3, 32
    stored_as = image_dtype or t.dtype
    k, side = channels * patch * patch, size // patch
    image, iv = draw((images, channels, size, size), stored_as, 15, exact=True)
    w, wv = draw((n, k), t.dtype, 16, exact=True)
    iv = iv[:, :, : side * patch, : side * patch]
    cut = iv.reshape(images, channels, side, patch, side, patch).transpose(0, 2, 4, 1, 3, 5)
    m = images * side * side
    want = cut.reshape(m, k) @ wv.T
    area = side * side
    row = (
        f"r / {area} * {channels * size * size} + r / {side} % {side} * {patch * size} "
        f"+ r % {side} * {patch}"
    )
    column = f"k / {patch * patch} * {size * size} + k / {patch} % {patch} * {size} + k % {patch}"
    vector = patch % 8 == 0 and size % 8 == 0
    source = functor(stored_as, row, column, vector=vector)
    text = program(
        t,
        n,
        k,
        source=source,
        epilogue=PLAIN,
        members="T* out;",
        arguments="epilogue.out = (T*)args[2];",
    )

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[2], want, t.dtype, exact=True)

    name = f"patches of {patch} in {size} {stored_as} {form}"
    return Case(name, text, [image, w, poison((m, n), t.dtype)], check, (m,), t.arch)


def configurations(form: str) -> list[Tile]:
    """What selection may choose from: small and large tiles, long rows, more stages."""
    unit = 16 if CPP[form.split()[0]] == "float" else 32
    return [
        Tile(form, 32, 32, unit, 1, 1, 2),
        Tile(form, 32, 64, 2 * unit, 2, 2, 4),
        Tile(form, 64, 96, unit, 2, 2, 4),
        Tile(form, 128, 64, 2 * unit, 4, 1, 3),
        Tile(form, 16, 64, 2 * unit, 1, 4, 3),
        Tile(form, 128, 128, unit, 2, 4, 3),
    ]


def gemm_cases(form: str) -> list[Case]:
    base = tile(form)
    cases = [
        plain(f"random {form}", base, 130, 128, 160, exact=False),
        plain(f"ragged m, n, k {form}", base, 75, 72, 56, exact=True),
        plain(f"odd n and k {form}", base, 70, 37, 51, exact=True),
        plain(f"one row, short k {form}", base, 1, 16, 8, exact=True),
        mapped_rows(form),
        norm_chain(form, 72),
        norm_chain(form, 37),
        norm_chain(form, 72, sums=True),
        exact_statistics(form, 72),
        exact_statistics(form, 37),
        patches(form, 14, 44),
        patches(form, 8, 32, "float32"),
    ]
    for t in configurations(form):
        shape = "x".join(map(str, (t.bm, t.bn, t.bk, t.warps_m, t.warps_n, t.stages)))
        cases.append(plain(f"tile {shape} {form}", t, 140, 136, 104, exact=True))
    if base.dtype == "float32":
        cases.append(plain(f"long k {form}", base, 20, 32, 3072, exact=False))
    if form in ("float16", "float32"):
        names = [name for name in ACTIVATIONS if form == "float16" or not name.endswith("Half")]
        cases += [activation(form, name) for name in names]
    return cases
