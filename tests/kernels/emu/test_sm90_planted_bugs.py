"""Bugs planted in Hopper's kernels: what a card may do, and a run on one mostly does not show."""

from __future__ import annotations

from pathlib import Path

import pytest
from kernels.emu import sm90_attention_cases, sm90_cases
from kernels.emu.emulation import SCHEDULES, STALLING
from kernels.gpu.planting import Bug, check_caught

COOPERATIVE = sm90_cases.gemm("cooperative", 300, 96, 136)
CLUSTER = sm90_cases.gemm("cluster", 520, 96, 328)
AHEAD = sm90_cases.gemm("tall", 150, 104, 200, ahead=True)
FULL = sm90_cases.gemm("192 sums of six rows", 200, 128, 72, ahead=True, sums=True)
ODD = sm90_cases.gemm("odd groups", 200, 320, 72, ahead=True, sums=True)
BACKWARDS = sm90_cases.gemm("cooperative cluster", 300, 104, 136, backwards=True)
PARTS = sm90_cases.gemm("three parts", 75, 96, 328)
GROUPS = sm90_cases.gemm("two groups", 75, 96, 328)
SCALES = sm90_cases.gemm("two groups, one part", 300, 200, 64)
LAST_SHARE_EMPTY = sm90_cases.gemm("three parts", 10, 96, 328)
PARTS_AHEAD = sm90_cases.gemm("three parts", 150, 104, 328, ahead=True)
ATTENTION = sm90_attention_cases.CASES[2]
COME_ANEW = sm90_attention_cases.CASES[4]

BUGS = [
    Bug(
        "gemm: barriers not fenced for copies",
        COOPERATIVE,
        "sm90/tile.h",
        "    barrier_init_done();\n",
        "",
        "no fence.mbarrier_init since",
    ),
    Bug(
        "gemm: rows copied before the kernel before has ended",
        COOPERATIVE,
        "sm90/gemm.cuh",
        "Where::column(Where::tile(first, tiles)));\n  wait_for_previous_kernel();",
        "Where::column(Where::tile(first, tiles)));",
        "before wait_for_previous_kernel()",
    ),
    Bug(
        "gemm: scales there when one warp of three has them",
        COOPERATIVE,
        "sm90/gemm.cuh",
        "barrier_init(ready(slot), kWarps)",
        "barrier_init(ready(slot), 1)",
    ),
    Bug(
        "gemm: scales there when one lane of a warp has them",
        COOPERATIVE,
        "sm90/gemm.cuh",
        "    sync_warp();\n    if (lane() == 0) barrier_arrive(handover",
        "    if (lane() == 0) barrier_arrive(handover",
    ),
    Bug(
        "gemm: scales not waited for",
        COOPERATIVE,
        "sm90/gemm.cuh",
        "barrier_wait(handover.ready(index), handover.parity(index));",
        "{}",
    ),
    Bug(
        "gemm: a stage is free before the other block has read it",
        CLUSTER,
        "sm90/gemm.cuh",
        "barrier_arrive_at(ring.empty(slot), unsigned(lane()))",
        "barrier_arrive_at(ring.empty(slot), cluster_rank())",
    ),
    Bug(
        "gemm: copies to a block that may not have begun",
        CLUSTER,
        "sm90/gemm.cuh",
        "  } else {\n    cluster_sync();\n  }\n",
        "  } else {\n    sync_block();\n  }\n",
        "may not have begun",
    ),
    Bug(
        "gemm: cluster barrier of a warp whose first lane was alone",
        CLUSTER,
        "sm90/gemm.cuh",
        "    sync_warp();\n    cluster_sync();",
        "    cluster_sync();",
        "cluster barrier in a divergent warp",
    ),
    Bug(
        "gemm: residual past the end loaded ahead",
        AHEAD,
        "sm90/tile.h",
        "if (row < m && (kN",
        "if ((kN",
        "past the end of args[3]",
    ),
    Bug(
        "gemm: residual of the piece before",
        AHEAD,
        "sm90/tile.h",
        "if (room && piece + 1 < P::kCount) operands.load(piece + 1,",
        "if (room && piece + 1 < P::kCount) operands.load(piece,",
    ),
    Bug(
        "gemm: residual of the piece before, behind 192 sums",
        FULL,
        "sm90/tile.h",
        "if (!room && piece + 1 < P::kCount) operands.load(piece + 1,",
        "if (!room && piece + 1 < P::kCount) operands.load(piece,",
    ),
    Bug(
        "gemm: residual of the column group before",
        ODD,
        "sm90/tile.h",
        "column = first_n + Sums::column(P::group(piece) + g);",
        "column = first_n + Sums::column(P::group(piece));",
    ),
    Bug(
        "gemm: residual of the first piece's rows",
        AHEAD,
        "sm90/tile.h",
        "first_m + Sums::row(0, 0) + Sums::row_of(P::line(piece) + j)",
        "first_m + Sums::row(0, 0) + Sums::row_of(j)",
    ),
    Bug(
        "gemm: rows past the end stored",
        AHEAD,
        "sm90/tile.h",
        "v[j][g], at_row(j) < m)",
        "v[j][g], true)",
        "past the end of args[3]",
    ),
    Bug(
        "gemm: only the producer goes backwards",
        BACKWARDS,
        "sm90/gemm.cuh",
        "const int tile = Where::tile(number, tiles);\n    const int rank",
        "const int tile = number;\n    const int rank",
    ),
    Bug(
        "gemm: only the consumers go backwards",
        BACKWARDS,
        "sm90/gemm.cuh",
        "const int tile = Where::tile(index, tiles);",
        "const int tile = index;",
    ),
    Bug(
        "gemm: the first weights are those of the first tile, the work begins with the last",
        BACKWARDS,
        "sm90/gemm.cuh",
        "Where::column(Where::tile(first, tiles))",
        "Where::column(first)",
    ),
    Bug(
        "gemm: scales brought for the tiles forwards",
        BACKWARDS,
        "sm90/gemm.cuh",
        "const int tile = Where::tile(number, tiles);\n    const int first_m",
        "const int tile = number;\n    const int first_m",
    ),
    Bug(
        "gemm: backwards from behind the last tile",
        BACKWARDS,
        "sm90/gemm.cuh",
        "tiles - 1 - index",
        "tiles - index",
    ),
    Bug(
        "split gemm: sums over stages that other warps' products read",
        GROUPS,
        "sm90/split_gemm.cuh",
        "named_sync(1, Tile::kConsumers);  // all warps' products have read the stages",
        "",
        "may still read",
    ),
    Bug(
        "split gemm: rows of the first warpgroup",
        GROUPS,
        "sm90/split_gemm.cuh",
        "const int group_row = warpgroup() * 64;",
        "const int group_row = 0;",
    ),
    Bug(
        "split gemm: scales that another warpgroup's warps bring not waited for",
        SCALES,
        "sm90/split_gemm.cuh",
        "named_sync(1, Tile::kConsumers);  // the row scales are there",
        "",
    ),
    Bug(
        "split gemm: rows that the next tile has, too",
        PARTS,
        "sm90/split_gemm.cuh",
        "minimum(int(Tile::kRows), m - first_m) - begin",
        "m - first_m - begin",
    ),
    Bug(
        "split gemm: sums to a block that may not have begun",
        PARTS,
        "sm90/split_gemm.cuh",
        "    cluster_start();",
        "    sync_block();",
        "may not have begun",
    ),
    Bug(
        "split gemm: sums counted at a barrier that the others may not see",
        PARTS,
        "sm90/split_gemm.cuh",
        "let_next_kernel_start();",
        "let_next_kernel_start();\n    barrier_init(received, 1);\n    barrier_expect(received, "
        "maximum(share_rows, 0) * (Tile::kSplit - 1) * Tile::kColumns * 4);",
        "no fence.mbarrier_init since",
    ),
    Bug(
        "split gemm: sums of the others not waited for",
        PARTS,
        "sm90/split_gemm.cuh",
        "barrier_wait(received, 0);",
        "{}",
    ),
    Bug(
        "split gemm: sums of one of two others waited for",
        PARTS,
        "sm90/split_gemm.cuh",
        "* (Tile::kSplit - 1) * Tile::kColumns * 4",
        "* Tile::kColumns * 4",
    ),
    Bug(
        "split gemm: bytes expected for rows past the end",
        LAST_SHARE_EMPTY,
        "sm90/split_gemm.cuh",
        "maximum(share_rows, 0)",
        "share_rows",
        "is to expect -",
    ),
    Bug(
        "split gemm: the block's own sums not waited for",
        GROUPS,
        "sm90/split_gemm.cuh",
        "named_sync(1, Tile::kConsumers);  // the block's own part is there",
        "",
    ),
    Bug(
        "split gemm: sums sent to the next block",
        PARTS,
        "sm90/split_gemm.cuh",
        "received, unsigned(owner))",
        "received, unsigned(rank + 1) % Tile::kSplit)",
    ),
    Bug(
        "split gemm: sums where another part's lie",
        PARTS,
        "sm90/split_gemm.cuh",
        "sums_of<Tile>(memory, owner, rank)",
        "sums_of<Tile>(memory, owner, rank + (rank != owner))",
    ),
    Bug(
        "split gemm: halves change places for the writer only",
        GROUPS,
        "sm90/split_gemm.cuh",
        "(local(turn) + x(turn) / kColumnGroup) & 1",
        "local(turn) & 1",
    ),
    Bug(
        "split gemm: residual past the end loaded ahead",
        PARTS_AHEAD,
        "sm90/split_gemm.cuh",
        "minimum(y(turn), rows - 1)",
        "y(turn)",
        "past the end of args[3]",
    ),
    Bug(
        "attention: barriers not fenced for copies",
        ATTENTION,
        "sm90/attention_tile.h",
        "    barrier_init_done();\n",
        "",
        "no fence.mbarrier_init since",
    ),
    Bug(
        "attention: weights in registers not fenced",
        ATTENTION,
        "sm90/attention.cuh",
        "      products_begin();\n      VITC_UNROLL\n      for (int i",
        "      VITC_UNROLL\n      for (int i",
        "registers that were not fenced",
    ),
    Bug(
        "attention: scores used while their product runs",
        ATTENTION,
        "sm90/attention.cuh",
        "    await_products();\n    if (turn.last_tile()) {",
        "    if (turn.last_tile()) {",
    ),
    Bug(
        "attention: values let go while their product runs",
        COME_ANEW,
        "sm90/attention.cuh",
        "    await_products();\n    if (turn.last_tile()) let_go",
        "    if (turn.last_tile()) let_go",
    ),
    Bug(
        "attention: queries let go before the tile's last scores",
        COME_ANEW,
        "sm90/attention.cuh",
        "    use_scores<Tile::kLastKeys>();\n    let_go(memory.query_empty(turn.query() % "
        "Tile::kQuerySlots));",
        "    let_go(memory.query_empty(turn.query() % Tile::kQuerySlots));\n"
        "    use_scores<Tile::kLastKeys>();",
    ),
    Bug(
        "attention: queries copied before the kernel before has ended",
        ATTENTION,
        "sm90/attention.cuh",
        "  wait_for_previous_kernel();\n  int slot",
        "  int slot",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_planted_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    check_caught(bug, tmp_path, SCHEDULES + STALLING)
