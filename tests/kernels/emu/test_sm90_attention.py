"""Hopper's attention emulated in all orders."""

from __future__ import annotations

import pytest
from kernels.emu.emulation import SCHEDULES, STALLING
from kernels.emu.sm90_attention_cases import CASES, SHAPES
from kernels.gpu.case import run_emulated


def possible_copies(name: str) -> set[int]:
    """Copies if each unit is worked on once, by how many tiles a unit may have. (One that two
    blocks work on, or one block twice, leaves the results as they are.)
    """
    (queries, keys, depth, block_keys, *_), batch, heads = SHAPES[name]
    panels, tiles, blocks = -(-depth // 64), -(-queries // 64), -(-keys // block_keys)
    return {
        batch * heads * panels * (tiles + -(-tiles // unit) * 2 * blocks)
        for unit in range(1, tiles + 1)
    }


@pytest.mark.parametrize("schedule", SCHEDULES + STALLING)
@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_attention(index: int, schedule: str) -> None:
    for statistics in run_emulated(CASES, index, [schedule]):
        assert statistics.tensor_copies in possible_copies(CASES[index].name)
        assert statistics.wgmma > 0
