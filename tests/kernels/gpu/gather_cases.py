"""Hopper's GEMM over gathered rows: patches of images behind class tokens, as ViTs begin."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from kernels.gpu.case import CPP, Case, compare, decode, draw, poison
from kernels.gpu.gemm_cases import functor
from numpy.typing import NDArray

COOPERATIVE = "64, 64, 4, false"
PING_PONG = "64, 32, 5, true"
TALL = "128, 96, 4, true"


@dataclass(frozen=True)
class Patches:
    """Images cut into patches; `tokens` rows of zeros stand before those of each."""

    images: int
    channels: int
    patch: tuple[int, int]
    size: tuple[int, int]
    tokens: int = 1

    @property
    def grid(self) -> tuple[int, int]:
        return self.size[0] // self.patch[0], self.size[1] // self.patch[1]

    @property
    def period(self) -> int:
        return self.tokens + self.grid[0] * self.grid[1]

    @property
    def rows(self) -> int:
        return self.images * self.period

    @property
    def depth(self) -> int:
        return self.channels * self.patch[0] * self.patch[1]

    def source(self, dtype: str) -> str:
        """The functor over images [images, channels, height, width]."""
        (ph, pw), (height, width), across = self.patch, self.size, self.grid[1]
        local = f"(r % {self.period} - {self.tokens})"
        row = (
            f"{local} < 0 ? -1 : r / {self.period} * {self.channels * height * width} + "
            f"{local} / {across} * {ph * width} + {local} % {across} * {pw}"
        )
        column = f"k / {ph * pw} * {height * width} + k / {pw} % {ph} * {width} + k % {pw}"
        return functor(dtype, row, column, vector=True)

    def gathered(self, images: NDArray) -> NDArray:
        """What the functor reads: [rows, depth]."""
        (ph, pw), (gh, gw) = self.patch, self.grid
        cut = images[:, :, : gh * ph, : gw * pw]
        cut = cut.reshape(self.images, self.channels, gh, ph, gw, pw).transpose(0, 2, 4, 1, 3, 5)
        cut = cut.reshape(self.images, gh * gw, self.depth)
        return np.pad(cut, ((0, 0), (self.tokens, 0), (0, 0))).reshape(self.rows, self.depth)


# A depth of one step, so that stages pass from one consumer to the other each time.
ONE_STEP = Patches(9, 1, (8, 8), (64, 88))


def program(function: str, tile: str, p: Patches, n: int, dtype: str = "float16") -> str:
    """args: images, W, table [period, n], out, sums of squares of 32 columns each; sizes: rows."""
    return f"""
using gpu::half;
using gpu::bfloat16;
using T = {CPP[dtype]};
{p.source(dtype)}
struct Epilogue {{
  static constexpr bool kRowScale = false, kOperands = true;
  using Statistics = gpu::Squares;
  const float* table;
  T* out;
  float* squares;
  template <class Visit>
  VITC_DEVICE void operands(int row, int column, const Visit& visit) const {{
    visit(table + row % {p.period} * {n} + column);
  }}
  VITC_DEVICE float row_scale(int) const {{ return 1; }}
  VITC_DEVICE float* statistics_at(int row, int slice) const {{
    return squares + row * {n // 32} + slice;
  }}
  VITC_DEVICE void statistics(int row, int slice, const Statistics& s) const {{
    s.write(statistics_at(row, slice));
  }}
  template <int V>
  VITC_DEVICE void steps(int row, int column, float (&v)[V], float) const {{
    gpu::add(v, table + row % {p.period} * {n} + column);
  }}
  template <int V>
  VITC_DEVICE void store(int row, int column, float (&v)[V], bool inside = true) const {{
    gpu::write(out + row * {n} + column, v, inside);
  }}
  template <int V>
  VITC_DEVICE void operator()(int row, int column, float (&v)[V], float row_scale) const {{
    steps(row, column, v, row_scale);
    store(row, column, v);
  }}
}};
extern "C" int @run@(void* const* args, const int64_t* sizes) {{
  const Source source{{(const T*)args[0]}};
  const Epilogue epilogue{{(const float*)args[2], (T*)args[3], (float*)args[4]}};
  return {function}<{tile}, {n}, {p.depth}>("patches", nullptr, int(sizes[0]), source,
                                            (const T*)args[1], epilogue);
}}
"""


def gather(sizes: str, dtype: str) -> tuple[str, str]:
    """Function and type of a GatherTile of these sizes."""
    return "gpu::sm90::gather_gemm", f"gpu::sm90::GatherTile<gpu::{CPP[dtype]}, {sizes}, 32>"


def patches(sizes: str, p: Patches, n: int, dtype: str = "float16", *, exact: bool = True) -> Case:
    """Y = A W^T + table, and the sums of Y's squares."""
    shape = (p.images, p.channels, *p.size)
    images, iv = draw(shape, dtype, 1, exact=exact)
    w, wv = draw((n, p.depth), dtype, 2, exact=exact)
    table, tv = draw((p.period, n), "float32", 3, exact=exact)
    want = p.gathered(iv) @ wv.T + np.tile(tv, (p.images, 1))

    def check(arrays: Sequence[NDArray]) -> None:
        compare(arrays[3], want, dtype, exact=exact)
        squares = (decode(arrays[3], dtype) ** 2).reshape(p.rows, n // 32, 32).sum(-1)
        compare(arrays[4], squares, "float32", exact=exact)

    return Case(
        f"{p.images}x{p.channels}x{p.size[0]}x{p.size[1]} by {p.patch[0]}x{p.patch[1]} "
        f"to {n} <{sizes}> {dtype}{'' if exact else ' random'}",
        program(*gather(sizes, dtype), p, n, dtype),
        [images, w, table, poison((p.rows, n), dtype), poison((p.rows, n // 32), "float32")],
        check,
        (p.rows,),
        arch=90,
        header="vitc/gpu/sm90/gather_gemm.cuh",
        held=(0, 3, 4),
    )


def gather_cases() -> list[Case]:
    """Tiles across images, ragged ends, depths and widths that no tile divides, odd images."""
    square = Patches(2, 1, (16, 16), (224, 224))
    return [
        patches(COOPERATIVE, square, 96),
        patches(PING_PONG, square, 96),
        patches(TALL, square, 96),
        patches(PING_PONG, Patches(9, 3, (16, 16), (64, 96)), 64),
        patches(COOPERATIVE, Patches(1, 3, (32, 32), (64, 32), tokens=0), 32),
        patches(PING_PONG, Patches(3, 2, (32, 32), (160, 224), tokens=5), 160),
        patches(COOPERATIVE, Patches(5, 1, (8, 8), (72, 56)), 64),
        patches(PING_PONG, ONE_STEP, 160),
        patches(PING_PONG, Patches(2, 1, (4, 8), (40, 40), tokens=2), 64),
        patches(COOPERATIVE, Patches(2, 3, (5, 24), (47, 104)), 64),
        patches(PING_PONG, Patches(5, 1, (16, 16), (112, 80)), 96, "bfloat16"),
        patches(PING_PONG, Patches(5, 1, (16, 16), (112, 80)), 96, exact=False),
        patches(COOPERATIVE, square, 64, "bfloat16", exact=False),
    ]
