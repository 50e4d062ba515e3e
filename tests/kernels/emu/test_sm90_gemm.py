"""Hopper's GEMMs emulated in all orders."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest
from kernels.emu.emulation import SCHEDULES, STALLING, build
from kernels.emu.sm90_cases import CASES, gemm
from kernels.gpu.case import run_emulated
from numpy.typing import NDArray

from vitc.codegen.targets.gpu.sm90_tiles import TILES, SplitTile


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_gemm(index: int) -> None:
    for statistics in run_emulated(CASES, index, SCHEDULES + STALLING):
        assert statistics.tensor_copies > 0
        assert statistics.wgmma > 0


def test_rows_that_are_alike_get_the_same_bits() -> None:
    """Whichever block of a cluster finishes them: sums are added in the order of the parts. The
    first and the last one cancel, so that another order shows.
    """
    case = gemm("three parts", 64, 104, 328, exact=False)
    by_row = (0, 3, 4, 5)
    arrays = [np.repeat(a[:1], len(a), 0) if i in by_row else a for i, a in enumerate(case.arrays)]
    arrays[0][:, (0, 256)] = (8192, -8192)
    arrays[1][:, (0, 256)] = 8192

    def check(results: Sequence[NDArray]) -> None:
        assert np.isfinite(results[5]).all()
        for i in by_row:
            np.testing.assert_array_equal(results[i], np.repeat(results[i][:1], 64, 0))

    run_emulated([replace(case, arrays=arrays, check=check)], 0)


def test_tiles_fit_shared_memory() -> None:
    """What the choice of a tile knows of its shared memory is what the kernel asks for."""
    sizes = "".join(
        f"static_assert(sm90::{tile.cpp('half', False)}::kSharedBytes "
        f"{f'== {tile.shared_bytes}' if isinstance(tile, SplitTile) else '<= (227 << 10)'});\n"
        for tile in TILES
    )
    headers = "".join(f'#include "vitc/gpu/sm90/{name}.cuh"\n' for name in ("gemm", "split_gemm"))
    build(f"{headers}namespace vitc::gpu {{\n{sizes}}}\n")


def test_what_is_loaded_ahead_shares_no_line_with_what_is_stored() -> None:
    """Such a store would wait for the load (benchmarks/h100/log.md, 34), which no emulation shows.
    In tiles that begin with a line of 128 bytes, and in those of 96 columns that begin amid one;
    those of 160 do share their last line then.
    """
    apart = """
template <class P, int kStart>
constexpr bool apart() {
  for (int piece = 0; piece + 1 < P::kCount; ++piece)
    for (int down = 0; down < P::kDown; ++down)
      for (int next_down = 0; next_down < P::kDown; ++next_down)
        for (int across = 0; across < P::groups(piece); ++across)
          for (int next = 0; next < P::groups(piece + 1); ++next) {
            const bool row = P::line(piece) + down == P::line(piece + 1) + next_down;
            const int bytes = sm90::kColumnGroup * int(sizeof(half));
            const int here = (kStart + (P::group(piece) + across) * bytes) / 128;
            const int there = (kStart + (P::group(piece + 1) + next) * bytes) / 128;
            if (row && here == there) return false;
          }
  return true;
}
"""
    sizes = {(64 if isinstance(tile, SplitTile) else tile.rows, tile.columns) for tile in TILES}
    checks = "".join(
        f"static_assert(apart<sm90::Pieces<sm90::Sums<half, {rows}, {columns}>, true>,"
        f" {start}>());\n"
        for rows, columns in sorted(sizes)
        for start in ((0, 64) if columns == 96 else (0,))
    )
    header = '#include "vitc/gpu/sm90/tile.h"\n'
    build(f"{header}namespace vitc::gpu {{\n{apart}{checks}}}\n")
