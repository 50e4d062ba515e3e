"""Hopper's GEMM over gathered rows emulated, in all orders, and with bugs planted in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernels.emu.emulation import SCHEDULES, STALLING
from kernels.gpu.case import run_emulated
from kernels.gpu.gather_cases import (
    COOPERATIVE,
    ONE_STEP,
    PING_PONG,
    Patches,
    gather_cases,
    patches,
)
from kernels.gpu.planting import Bug, check_caught

CASES = gather_cases()
TURNS = patches(PING_PONG, Patches(5, 1, (16, 16), (112, 80)), 96)
TOGETHER = patches(COOPERATIVE, Patches(3, 2, (32, 32), (160, 224)), 64)
SHORT = patches(PING_PONG, ONE_STEP, 160)

BUGS = [
    Bug(
        "rows not fenced for products",
        TURNS,
        "sm90/gather_gemm.cuh",
        "    proxy_fence();\n",
        "",
        "no fence.proxy.async since",
    ),
    Bug(
        "copies not waited for",
        TURNS,
        "sm90/gather_gemm.cuh",
        "async_copy_wait<0>",
        "async_copy_wait<1>",
    ),
    Bug(
        "a stage filled while it is read",
        TURNS,
        "sm90/gather_gemm.cuh",
        "    barrier_wait(ring.empty(at.slot), at.parity ^ 1);\n",
        "",
    ),
    Bug(
        "a stage filled when others have one phase to go",
        TOGETHER,
        "sm90/gather_gemm.cuh",
        "barrier_wait(ring.empty(at.slot), at.parity ^ 1);",
        "barrier_wait(ring.empty(at.slot), at.parity);",
    ),
    Bug(
        "weights not waited for",
        TURNS,
        "sm90/gather_gemm.cuh",
        "barrier_expect(full, Tile::kBytesB);",
        "barrier_arrive(full);",
    ),
    Bug(
        "a stage is free when one of two consumers has read it",
        TOGETHER,
        "sm90/gather_gemm.cuh",
        "ring.init(4 * (Tile::kPingPong ? 1 : Tile::kConsumers));",
        "ring.init(4);",
    ),
    Bug(
        "written without swizzle",
        TURNS,
        "sm90/gather_gemm.cuh",
        "(chunk ^ row % 8) * 16",
        "chunk * 16",
    ),
    Bug(
        "rows of the first tile",
        TURNS,
        "sm90/gather_gemm.cuh",
        "if (tile != known) {",
        "if (known < 0) {",
    ),
    Bug(
        "rows past the end read",
        TURNS,
        "sm90/gather_gemm.cuh",
        "minimum(Where::row(tile, 0) + i * kRowsAtOnce + row, m - 1)",
        "Where::row(tile, 0) + i * kRowsAtOnce + row",
    ),
    Bug(
        "a class token's row not zero",
        TURNS,
        "sm90/gather_gemm.cuh",
        "                      from >= 0);",
        "                      true);",
    ),
    Bug(
        "weights in another order",
        TURNS,
        "sm90/gather.h",
        "{row, 8 * row, 2 * row, kColumnGroup * row}",
        "{row, 2 * row, 8 * row, kColumnGroup * row}",
    ),
    Bug(
        "other lanes' copies not waited for",
        TURNS,
        "sm90/gather_gemm.cuh",
        "    proxy_fence();\n    sync_warp();\n",
        "    proxy_fence();\n",
    ),
    Bug(
        "a stage filled two phases ahead of who reads it",
        SHORT,
        "sm90/gather_gemm.cuh",
        "    barrier_wait(full, at.parity ^ 1);\n",
        "",
    ),
    Bug(
        "images read before the kernel before has ended",
        TURNS,
        "sm90/gather_gemm.cuh",
        "if (index < Tile::kProducers) wait_for_previous_kernel();",
        "",
    ),
]


@pytest.mark.parametrize("index", range(len(CASES)), ids=[case.name for case in CASES])
def test_gather(index: int) -> None:
    for statistics in run_emulated(CASES, index, SCHEDULES + STALLING):
        assert statistics.tensor_copies > 0
        assert statistics.wgmma > 0


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_planted_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    check_caught(bug, tmp_path, SCHEDULES + STALLING)
