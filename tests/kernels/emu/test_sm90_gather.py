"""Hopper's GEMM over gathered rows emulated in all orders."""

from __future__ import annotations

import pytest
from kernels.emu.emulation import SCHEDULES, STALLING
from kernels.gpu.case import run_emulated
from kernels.gpu.gather_cases import gather_cases

CASES = gather_cases()


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_gather(index: int) -> None:
    for statistics in run_emulated(CASES, index, SCHEDULES + STALLING):
        assert statistics.tensor_copies > 0
        assert statistics.wgmma > 0
