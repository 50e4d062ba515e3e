"""Bugs planted in the kernels' text, each of which the emulation must catch.

A bug counts as caught when the launch fails or the result differs, in one of the two orders.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from kernels.emu import sm90_cases
from kernels.emu.emulation import SCHEDULES
from kernels.gpu.attention_cases import Shape, Terms, Windows, attention, windows
from kernels.gpu.gemm_cases import norm_chain, plain, tile
from kernels.gpu.planting import Bug, check_caught
from kernels.gpu.rows_cases import group_norm

GEMM = plain("gemm", tile("float16"), 75, 72, 128, exact=True)
GEMM_ODD = plain("gemm, odd k", tile("float16"), 75, 72, 51, exact=True)
GEMM_75 = plain("gemm sm_75", tile("float16 sm_75"), 75, 72, 128, exact=True)
GEMM_TF32 = plain("gemm tf32", tile("tf32"), 75, 72, 128, exact=True)
GEMM_LONG = plain("gemm float32, long k", tile("float32"), 16, 32, 3072, exact=False)
GEMM_SIMT = plain("gemm simt", tile("float32 sm_75"), 75, 72, 128, exact=True)
CHAIN = norm_chain("float16", 72)
SUMS = norm_chain("float16", 72, sums=True)
SUMS_SM90 = sm90_cases.gemm("three", 75, 96, 72, sums=True)
SUMS_SPLIT = sm90_cases.gemm("two parts", 75, 96, 136, sums=True)
ONLINE = attention("online", "float16", Shape(40, 75, 32, 32, 32, 2))
ONE_PASS = attention("one pass", "float16", Shape(40, 75, 32, 32, 80, 2))
FLOAT = attention("float", "float32", Shape(40, 75, 32, 32, 32, 2))
SIMT = attention("simt", "float32 sm_75", Shape(40, 75, 32, 32, 32, 2))
TERMS = windows(
    "windows",
    "float16",
    Windows(7, 6, 4, 1),
    Shape(16, 16, 32, 32, 16, 1, 4, 3, 4),
    Terms("heads", 4, factors=True, cosine=True),
)
NORMS = attention("norms", "float16", Shape(40, 75, 32, 32, 32, 2), Terms(cosine=True))
SPARE = attention("a head missing", "float16", Shape(16, 16, 32, 32, 16, 1, 1, 3, 4))
ODD_TILES = attention("odd tiles", "float16", Shape(16, 49, 32, 32, 64, 1), Terms("heads"))
GROUPS = group_norm("float16")


BUGS = [
    Bug(
        "gemm: no barrier in the loop",
        GEMM,
        "gemm.cuh",
        "    sync_block();\n    const bool more",
        "    const bool more",
    ),
    Bug(
        "gemm sm_75: no barrier in the loop",
        GEMM_75,
        "gemm.cuh",
        "    sync_block();\n    const bool more",
        "    const bool more",
    ),
    Bug(
        "gemm: wait promises a stage too few",
        GEMM,
        "gemm.cuh",
        "async_copy_wait<kStages - 2>",
        "async_copy_wait<kStages - 1>",
    ),
    Bug(
        "gemm: copy runs a stage too far ahead",
        GEMM,
        "gemm.cuh",
        "int read = 0, write_to = kStages - 1;",
        "int read = 0, write_to = 0;",
    ),
    Bug(
        "gemm: stage past the ring",
        GEMM,
        "gemm.cuh",
        "read = read + 1 < kStages ? read + 1 : 0;",
        "read = read + 1;",
        "ldmatrix row of 16 bytes outside shared memory",
    ),
    Bug(
        "gemm: shared memory one stage short",
        GEMM,
        "gemm.cuh",
        "return ring_bytes(steps) + kBM * 4;",
        "return ring_bytes(steps) - kStageBytes + kBM * 4;",
        "outside shared memory",
    ),
    Bug(
        "gemm: chunk halves of B swapped",
        GEMM,
        "warp_tile.h",
        "fragment_b[j] = Policy::make_b(r[0], r[1]);",
        "fragment_b[j] = Policy::make_b(r[1], r[0]);",
    ),
    Bug(
        "gemm: tiles of B swapped",
        GEMM_TF32,
        "warp_tile.h",
        "column(first + j + l / 16, l % 8)",
        "column(first + j + l / 8 % 2, l % 8)",
    ),
    Bug(
        "gemm: rows of A's fragment in the wrong lanes",
        GEMM,
        "warp_tile.h",
        "first_a + i * 16 + l % 16, chunk + l / 16",
        "first_a + i * 16 + l / 2, chunk + l % 2",
    ),
    Bug(
        "gemm: accumulators taken in the wrong order",
        GEMM,
        "warp_tile.h",
        "[half * 2 + c % 2];",
        "[c % 2 * 2 + half];",
    ),
    Bug(
        "gemm: written without swizzle",
        GEMM,
        "loader.h",
        "return Layout::offset(row, thread() % Layout::kChunks);",
        "return row * Layout::kRowBytes + thread() % Layout::kChunks * 16;",
    ),
    Bug(
        "gemm: a row copied to its neighbour's place",
        GEMM_SIMT,
        "loader.h",
        "int row = thread() / Layout::kChunks + i * kRowsAtOnce;\n    return",
        "int row = thread() / Layout::kChunks + (i ^ 1) * kRowsAtOnce;\n    return",
    ),
    Bug(
        "gemm: early return of idle warps",
        GEMM_75,
        "gemm.cuh",
        "  wait_for_previous_kernel();\n",
        "  if (first_m + Tile::warp_row() >= m) return;\n",
        "divergent block barrier",
    ),
    Bug(
        "gemm: rows past the end stored",
        GEMM,
        "gemm.cuh",
        "if (row >= m) continue;",
        "",
        "bytes past the end of args[2]",
    ),
    Bug("gemm: columns past the end stored", GEMM, "gemm.cuh", "if (column >= kN) continue;", ""),
    Bug(
        "gemm: rows past the end read",
        GEMM,
        "loader.h",
        "row_[i] = source_.row(minimum(row, rows - 1));",
        "row_[i] = source_.row(row);\n      inside_ |= 1u << i;",
    ),
    Bug(
        "gemm: odd rows copied as vectors",
        GEMM_ODD,
        "source.cuh",
        "bool kAligned = (kStride * sizeof(T_)) % 16 == 0",
        "bool kAligned = true",
        "misaligned",
    ),
    Bug("gemm: chunks past k not zero", GEMM_ODD, "loader.h", "inside && k + e < kK", "inside"),
    Bug(
        "gemm: shuffle under a row's mask",
        CHAIN,
        "gemm.cuh",
        "slice = slice.template total<4>();",
        "if (row < m) slice = slice.template total<4>();",
        "divergent shuffle_xor",
    ),
    Bug(
        "gemm: sum over half of the row's lanes",
        CHAIN,
        "gemm.cuh",
        "total<4>()",
        "total<2>()",
    ),
    Bug(
        "gemm: a lane's sum instead of the row's",
        SUMS,
        "epilogue.cuh",
        "warp_sum<kLanes>(sum)}",
        "sum}",
    ),
    Bug(
        "gemm: deviations from sums read as squares",
        SUMS,
        "epilogue.cuh",
        "squares += from[0];",
        "squares += from[1];",
    ),
    Bug(
        "gemm: a deviation without the mean",
        SUMS,
        "epilogue.cuh",
        "-mean * mean",
        "0.f * mean",
    ),
    Bug(
        "sm90: a slice's statistics go on in the next",
        SUMS_SM90,
        "sm90/tile.h",
        "      running = {};\n",
        "",
    ),
    Bug(
        "sm90: statistics of half a slice",
        SUMS_SPLIT,
        "sm90/split_gemm.cuh",
        "total<kSlice / kVector>()",
        "total<kSlice / kVector / 2>()",
    ),
    Bug(
        "gemm: row scales of another row",
        CHAIN,
        "gemm.cuh",
        "row_scale[local]",
        "row_scale[local / 2]",
    ),
    Bug(
        "gemm: row scales over the last stage",
        CHAIN,
        "gemm.cuh",
        "stages + Tile::ring_bytes(kSteps)",
        "stages + Tile::ring_bytes(kSteps) - Tile::kStageBytes",
    ),
    Bug(
        "gemm: float sums left to the tensor core",
        GEMM_LONG,
        "mma.h",
        "float product[4] = {0, 0, 0, 0};",
        "float product[4] = {d[0], d[1], d[2], d[3]};\n    for (float& sum : d) sum = 0;",
    ),
    Bug(
        "attention: V used before its barrier",
        ONE_PASS,
        "attention.cuh",
        "      async_copy_wait<kLast ? 0 : 2>();  // V of block b\n      sync_block();",
        "      async_copy_wait<kLast ? 0 : 2>();",
    ),
    Bug(
        "attention: V not waited for",
        ONLINE,
        "attention.cuh",
        "async_copy_wait<kLast ? 0 : 2>",
        "async_copy_wait<kLast ? 0 : 3>",
    ),
    Bug(
        "attention: K not waited for",
        ONE_PASS,
        "attention.cuh",
        "async_copy_wait<1>",
        "async_copy_wait<2>",
    ),
    Bug(
        "attention: no barrier between blocks",
        ONLINE,
        "attention.cuh",
        "sync_block();  // and everyone",
        "// and everyone",
    ),
    Bug(
        "attention: next block over the one in use",
        ONLINE,
        "attention.cuh",
        "copy_block(b + 1);",
        "copy_block(b + 2);",
    ),
    Bug(
        "attention: keys past the end not masked",
        ONE_PASS,
        "attention.cuh",
        "if (kLast && (j + 1) * 8 > Tile::kTail && key",
        "if (kLast && (j + 1) * 8 < Tile::kTail && key",
    ),
    Bug(
        "attention: output not rescaled",
        ONLINE,
        "attention.cuh",
        "out[n][2 * half] *= kept, out[n][2 * half + 1] *= kept;",
        "out[n][2 * half] *= kept;",
    ),
    Bug(
        "attention: V's halves swapped",
        ONE_PASS,
        "attention_math.h",
        "out[n], a, Policy::make_b(r[0], r[1])",
        "out[n], a, Policy::make_b(r[1], r[0])",
    ),
    Bug(
        "attention: float keys in mma order",
        FLOAT,
        "attention_math.h",
        "bits_of(p[j][2]), bits_of(p[j][1])",
        "bits_of(p[j][1]), bits_of(p[j][2])",
    ),
    Bug(
        "attention: weights from the wrong lane",
        SIMT,
        "attention_math.h",
        "shuffle(p[j][key % 2], key / 2, 4)",
        "shuffle(p[j][key / 4], key % 4, 4)",
    ),
    Bug(
        "attention: keys past the end not masked in an odd tile",
        ODD_TILES,
        "attention.cuh",
        "key + e % 2 >= Tile::kTail",
        "key >= Tile::kTail",
    ),
    Bug(
        "attention: the pair that neighbours swap",
        ODD_TILES,
        "attention.cuh",
        "shuffle_xor(odd ? low : high, 1)",
        "shuffle_xor(odd ? high : low, 1)",
    ),
    Bug(
        "attention: biases of the other tile",
        ODD_TILES,
        "attention.cuh",
        "two[j % 2 * 4 + e]",
        "two[(j + 1) % 2 * 4 + e]",
    ),
    Bug(
        "attention: a group that has no head stores",
        SPARE,
        "attention.cuh",
        "const bool exists = Tile::kGroups == 1 || wanted < batches * kHeads;",
        "const bool exists = true;",
    ),
    Bug(
        "attention: groups share their memory",
        TERMS,
        "attention.cuh",
        "+ group * Memory::kBytes}",
        "+ group * (Memory::kBytes - 128)}",
    ),
    Bug(
        "attention: padding stored",
        TERMS,
        "attention.cuh",
        "at[half] = stored ? begin + head * Output::kHead : -1;",
        "at[half] = maximum(begin, 0) + head * Output::kHead;",
    ),
    Bug(
        "attention: labels of another window",
        TERMS,
        "attention_terms.h",
        "batch % kWindows * kTokens",
        "batch / kWindows * kTokens",
    ),
    Bug(
        "attention: norms used before they are there",
        NORMS,
        "attention.cuh",
        "terms.eps);\n      }\n      sync_block();",
        "terms.eps);\n      }",
    ),
    Bug(
        "attention: V read without transposition",
        ONE_PASS,
        "attention_math.h",
        "ldmatrix_x4_trans(r,",
        "ldmatrix_x4(r,",
    ),
    Bug(
        "rows: scratch reused before all have read it",
        GROUPS,
        "rowwise.cuh",
        "  sync_block();  // whoever still reads the last sum\n",
        "",
    ),
    Bug(
        "rows: sum of a sixteenth of the warp",
        GROUPS,
        "rowwise.cuh",
        "value = warp_sum(value);",
        "value = warp_sum<16>(value);",
    ),
]


@pytest.mark.parametrize("bug", BUGS, ids=str)
def test_planted_bug_is_caught(bug: Bug, tmp_path: Path) -> None:
    check_caught(bug, tmp_path, SCHEDULES)
