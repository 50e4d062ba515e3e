"""Tensor stores emulated: tiles that come by a tensor copy, are added to in place by four warps and
leave by a tensor store; right, and with bugs planted.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import pytest
from kernels.emu.emulation import SCHEDULES, STALLING, EmulationError, build
from numpy.typing import NDArray

# out[row + shift, k] = in[row, k] + the place's number in the tile, modulo 1021. The tile lies
# `lines` lines of 128 bytes from where shared memory begins. Each bug is a number; 0, 1, 19 and
# 20 are none.
PROGRAM = """
#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tma.h"
using namespace vitc::gpu;
using namespace vitc::gpu::sm90;
constexpr int kRows = 64, kTile = kRows * kTileBytes, kSlack = 1024;
struct Tiles {
  int across, count, rows, shift, lines;
};

VITC_DEVICE void move(const TensorMap& in, const TensorMap& out, char* tile, Barrier* loaded,
                      const Tiles& tiles, int bug) {
  half* first = reinterpret_cast<half*>(tile);
  if (bug != 2) wait_for_previous_kernel();
  int index = 0;
  for (int t = block(); t < tiles.count; t += int(grid_size().x), ++index) {
    const int k = t % tiles.across * kTileDepth, row = t / tiles.across * kRows;
    if (bug == 3) {
      stores_wait_read<1>();
    } else if (bug != 4) {
      stores_wait_read<0>();
    }
    barrier_expect(loaded, kTile);
    copy_tile(tile, &in, k, row, loaded);
    if (bug != 5) barrier_wait(loaded + 1, unsigned(index) & 1);
    if (bug == 1) proxy_fence();
    store_tile(&out, k, row + tiles.shift, tile + (bug == 6) * 64);
    if (bug == 7) store_tile(&out, k, row + tiles.shift + kRows, tile);
    if (bug != 8) stores_commit();
    if (bug == 9) tile[5] ^= 1;
    if (bug == 10) store<8>(first, {});
    if (bug == 11) async_copy_16(tile, in.data, true);
  }
  if (bug == 12 || bug == 18) barrier_arrive(loaded + 2);
  if (bug == 12) barrier_wait(loaded + 3, 0);
  if (bug != 12) stores_wait_read<0>();
  if (bug == 19) barrier_arrive(loaded + 2);
}

VITC_KERNEL(160, 1) add(TensorMap in, TensorMap out, Tiles tiles, int bug) {
  char* tile = dynamic_shared<char>() + tiles.lines * kTileBytes;
  Barrier* loaded = reinterpret_cast<Barrier*>(dynamic_shared<char>() + kTile + kSlack);
  if (thread() == 0) {
    barrier_init(loaded, 1);
    barrier_init(loaded + 1, 4);
    barrier_init(loaded + 2, 1);
    barrier_init(loaded + 3, 1);
    barrier_init_done();
  }
  sync_block();
  if (warp() == 4) {
    if (lane() == 0) move(in, out, tile, loaded, tiles, bug);
    if (lane() == 1 && bug == 12) {
      barrier_wait(loaded + 2, 0);
      for (int t = 0; t < tiles.count; ++t) stores_commit();
      stores_wait_read<0>();
      barrier_arrive(loaded + 3);
    }
    sync_warp();
    return;
  }
  int index = 0;
  for (int t = block(); t < tiles.count; t += int(grid_size().x), ++index) {
    barrier_wait(loaded, unsigned(index) & 1);
    if (bug == 13 && lane() == 0) barrier_arrive(loaded + 1);
    for (int chunk = thread(); chunk < kRows * 8; chunk += 128) {
      const int row = chunk / 8, place = chunk % 8 ^ (row + tiles.lines) % 8;
      half* at = reinterpret_cast<half*>(tile + row * kTileBytes + place * 16);
      float v[8];
      load_floats<8>(v, at);
      for (int i = 0; i < 8; ++i) v[i] += float((chunk * 8 + i) % 1021);
      const bool outside = t / tiles.across * kRows + row >= tiles.rows;
      const bool plain = bug == 14 || (bug == 20 && outside);
      for (int i = 0; plain && i < 8; ++i) at[i] = to_half(v[i]);
      if (!plain) store_floats<8>(at, v);
    }
    if (bug != 1 && bug != 15 && !(bug == 16 && warp() == 2)) proxy_fence();
    sync_warp();
    if (bug != 13 && lane() == 0) barrier_arrive(loaded + 1);
  }
  if (bug == 18 || bug == 19) {
    barrier_wait(loaded + 2, 0);
    store<8>(reinterpret_cast<half*>(tile) + thread() * 8, {});
  }
}

// args: out, in (those of out are read if sizes[0] says so). sizes: in place, rows, depth, rows of
// out, stride, shift, lines, bug.
extern "C" int run(void* const* args, const int64_t* sizes) {
  const int rows = int(sizes[1]), depth = int(sizes[2]), out_rows = int(sizes[3]);
  const int across = divide_up(depth, kTileDepth), bug = int(sizes[7]);
  TensorMap in, out;
  int status = encode_map(&in, (const half*)args[1 - sizes[0]], rows, depth, sizes[4], kRows);
  if (status == 0) {
    status = encode_map(&out, (const half*)args[0], out_rows, depth, sizes[4], kRows);
  }
  if (status != 0) return status;
  if (bug == 17) out = {};
  const Tiles tiles{across, across * divide_up(rows, kRows), rows, int(sizes[5]), int(sizes[6])};
  const LaunchShape shape{"add", Dim3(2), 160, kTile + kSlack + 32, nullptr};
  return launch_clusters(shape, 1, false, add, in, out, tiles, bug);
}
"""


@dataclass(frozen=True)
class Case:
    """Sizes of both matrices in elements; rows of memory are 8 elements longer than `depth`."""

    rows: int = 150
    depth: int = 104
    out_rows: int = 150
    missing: int = 0  # rows of out that have no memory
    shift: int = 0
    lines: int = 0
    in_place: bool = False


def run(case: Case, bug: int, schedule: str) -> tuple[NDArray, NDArray]:
    """What the kernel leaves, and what it should: NaN where it writes nothing."""
    stride = case.depth + 8
    rng = np.random.default_rng(0)
    rows = rng.integers(-2, 3, (case.rows, stride)).astype(np.float16)
    blank = np.full((case.out_rows - case.missing, stride), np.nan, np.float16)
    row, k = np.mgrid[: case.rows, : case.depth]
    changed = rows[:, : case.depth] + (row % 64 * 64 + k % 64) % 1021
    want = (rows if case.in_place else blank).copy()
    first, end = max(0, case.shift), min(len(want), case.rows + case.shift)
    want[first:end, : case.depth] = changed[first - case.shift : end - case.shift]
    sizes = [case.in_place, case.rows, case.depth, case.out_rows, stride, case.shift, case.lines]
    got = build(PROGRAM).run(
        [rows if case.in_place else blank, rows], [*map(int, sizes), bug], schedule=schedule
    )[0]
    return got, want


@pytest.mark.parametrize("schedule", [*SCHEDULES, *STALLING])
@pytest.mark.parametrize(
    "case",
    [
        Case(),
        Case(rows=128, depth=128, out_rows=128),
        Case(out_rows=100),
        Case(shift=8, lines=3),
        Case(out_rows=90, shift=-13, lines=1),
        Case(in_place=True),
    ],
    ids=str,
)
def test_tiles_are_stored(case: Case, schedule: str) -> None:
    np.testing.assert_array_equal(*run(case, 0, schedule))


@pytest.mark.parametrize("schedule", [*SCHEDULES, *STALLING])
@pytest.mark.parametrize(
    "way",
    [1, 19, 20],
    ids=["the reader fences", "reused behind the wait", "plain stores of what is outside"],
)
def test_other_ways_are_right(way: int, schedule: str) -> None:
    np.testing.assert_array_equal(*run(Case(), way, schedule))


READ = r"write of \d+ bytes to shared offset 0, which a tensor store of thread 128 may still read"
UNSEEN = r"tensor store's source at shared offset \d+, which thread {} wrote .*: no fence.proxy"
# The number, and what the launch says; "" where some order only gives other numbers.
BUGS = {
    "before the kernel before has ended": (2, r"before wait_for_previous_kernel\(\)"),
    "overwritten by a copy, one group too many left": (3, READ),
    "overwritten by a copy, no wait": (4, READ),
    "before the tile is complete": (5, ""),
    "misaligned": (6, "tensor store of 128 bytes at the misaligned address"),
    "never committed": (8, READ),
    "overwritten by a plain store": (9, "source at shared offset 0 was overwritten before the"),
    "overwritten by a store": (10, READ),
    "overwritten by cp.async": (11, READ),
    "waited for by another thread": (12, "exit with a tensor store not waited for"),
    "handed over before other lanes have written": (13, ""),
    "written by plain stores": (14, "source at shared offset .* neither by store"),
    "not fenced": (15, UNSEEN.format(r"\d+")),
    "not fenced by one warp": (16, UNSEEN.format(r"(6[4-9]|[78]\d|9[0-5])")),
    "given away before the wait": (18, READ.replace("offset 0", r"offset \d+")),
    "no map": (17, "tensor store of rank 2 through no tensor map"),
}


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_caught(name: str) -> None:
    bug, message = BUGS[name]
    caught = []
    for schedule in (*SCHEDULES, *STALLING):
        try:
            got, want = run(Case(), bug, schedule)
            caught.append("" if np.array_equal(got, want, equal_nan=True) else "numbers differ")
        except EmulationError as error:
            caught.append(str(error))
    assert any(caught), "no order shows it"
    if message:
        with pytest.raises(EmulationError, match=message):
            run(Case(), bug, "forward")


def test_the_last_store_is_committed() -> None:
    with pytest.raises(EmulationError, match="exit with a tensor store not committed"):
        run(Case(rows=64, depth=64, out_rows=64), 8, "forward")


def test_the_last_store_need_not_win() -> None:
    got, want = run(Case(), 7, "forward")
    assert not np.array_equal(got, want, equal_nan=True)


def test_a_tensor_that_is_not_there() -> None:
    with pytest.raises(EmulationError, match=r"illegal memory access .* past the end of args\[0\]"):
        run(Case(missing=1), 0, "forward")


def test_other_tiles_may_be_read_before_or_after() -> None:
    case = Case(shift=64, in_place=True)
    (late, want), (early, _) = (run(case, 0, schedule) for schedule in SCHEDULES)
    np.testing.assert_array_equal(late, want)
    assert not np.array_equal(early, want)
