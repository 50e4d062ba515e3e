"""Hopper's attention emulated in all orders."""

from __future__ import annotations

import pytest
from kernels.emu.emulation import SCHEDULES, STALLING
from kernels.emu.sm90_attention_cases import CASES
from kernels.gpu.case import run_emulated


@pytest.mark.parametrize("schedule", SCHEDULES + STALLING)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_attention(index: int, schedule: str) -> None:
    for statistics in run_emulated(CASES, index, [schedule]):
        assert statistics.tensor_copies > 0
        assert statistics.wgmma > 0
