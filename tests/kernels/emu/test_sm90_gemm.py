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
