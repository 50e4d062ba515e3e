"""Hopper's instructions emulated: bugs planted in a small pipelined product must be caught."""

from __future__ import annotations

import numpy as np
import pytest
from kernels.emu.emulation import SCHEDULES, EmulationError, build

# D[64, 32] = A[64, 256] * B[32, 256]^T through two stages; each bug is a number.
PROGRAM = """
#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tma.h"
#include "vitc/gpu/sm90/wgmma.h"
using namespace vitc::gpu;
using namespace vitc::gpu::sm90;
constexpr int kStage = 12288, kSteps = 4;

VITC_KERNEL(160, 1) product(float* out, TensorMap map_a, TensorMap map_b, int bug) {
  char* memory = dynamic_shared<char>();
  Barrier* full = reinterpret_cast<Barrier*>(memory + 2 * kStage);
  Barrier* empty = full + 2;
  if (thread() == 0) {
    for (int i = 0; i < 2; ++i) {
      if (bug != 1) barrier_init(full + i, 1);
      barrier_init(empty + i, 4);
    }
    barrier_init_done();
  }
  sync_block();
  if (warp() == 4) {
    if (lane() == 0) {
      for (int step = 0; step < kSteps + (bug == 2); ++step) {
        const int slot = step % 2;
        if (step >= 2 && bug != 3) barrier_wait(empty + slot, unsigned(step / 2 - 1) & 1);
        barrier_expect(full + slot, kStage + (bug == 4 ? 128 : bug == 5 ? -4096 : 0));
        if (bug == 6) barrier_expect(full + slot, kStage);
        char* stage = memory + slot * kStage + (bug == 7 ? 16 : 0);
        copy_tile(stage, &map_a, step * 64, 0, full + slot);
        copy_tile(stage + 8192, &map_b, step * 64, 0, full + slot);
      }
    }
    sync_warp();
    return;
  }
  if (bug == 8) take_registers<256>();
  float d[16];
  for (int step = 0; step < kSteps; ++step) {
    const int slot = step % 2;
    const char* stage = memory + slot * kStage;
    if (bug != 9) barrier_wait(full + slot, bug == 10 ? 0 : unsigned(step / 2) & 1);
    uint64_t a = tile_descriptor(stage), b = tile_descriptor(stage + 8192);
    if (bug == 11) b ^= uint64_t(3) << 62;  // 64-byte swizzle
    if (bug != 12) products_begin();
    for (int k = 0; k < 4; ++k) {
      if (bug == 13 && warp() == 2 && k == 3) continue;
      if (step + k == 0) {
        Product<half, 32>::multiply_first(d, a, b);
      } else {
        Product<half, 32>::multiply_add(d, a + k * kNextColumns, b + k * kNextColumns);
      }
    }
    products_commit();
    if (bug == 14) d[0] = 0;
    if (bug == 15 && lane() == 0) barrier_arrive(empty + slot);
    if (bug != 16) products_wait<0>();
    if (bug != 15 && lane() == 0) barrier_arrive(empty + slot);
  }
  for (int i = 0; i < 16; ++i) {
    const int row = warp() * 16 + lane() / 4 + i / 2 % 2 * 8;
    out[row * 32 + i / 4 * 8 + lane() % 4 * 2 + i % 2] = d[i];
  }
}
extern "C" int run(void* const* args, const int64_t* sizes) {
  TensorMap a, b;
  int status = encode_map(&a, (const half*)args[1], 64, 256, sizes[1], int(sizes[2]));
  if (status == 0) status = encode_map(&b, (const half*)args[2], 32, 256, 256, 32);
  if (status != 0) return status;
  const LaunchShape shape{"product", Dim3(1), 160, 2 * kStage + 64, nullptr};
  return launch_clusters(shape, 1, false, product, (float*)args[0], a, b, int(sizes[0]));
}
"""
# The number, and what the launch says; "" where some order only gives other numbers, or hangs.
BUGS = {
    "barrier not initialised": (1, "is not initialised"),
    "a copy that nobody waits for": (2, "deadlock|tensor copies that nobody waited for"),
    "stage filled before it is empty": (3, ""),
    "too many bytes expected": (4, "deadlock: waits for parity 0 .* 128 bytes are missing"),
    "too few bytes expected": (5, ""),
    "two arrivals": (6, "more than 1 arrivals"),
    "misaligned tile": (7, "tensor copy of 128 bytes at the misaligned"),
    "too many registers": (8, "registers; it was launched with"),
    "no wait for the copies": (9, ""),
    "phase not turned": (10, ""),
    "wrong swizzle": (11, ""),
    "no fence": (12, "not fenced"),
    "a warp leaves out a product": (13, "divergent wgmma"),
    "sums written early": (14, "sums were written before the wait"),
    "stage released early": (15, ""),
    "no wait for the products": (16, "products not waited for"),
}


def run(bug: int, schedule: str, pitch: int = 256, box: int = 64) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    a = rng.integers(-2, 3, (64, 256)).astype(np.float16)
    b = rng.integers(-2, 3, (32, 256)).astype(np.float16)
    out = np.full((64, 32), np.nan, np.float32)
    got = build(PROGRAM).run([out, a, b], [bug, pitch, box], schedule=schedule)[0]
    return got, a.astype(np.float32) @ b.astype(np.float32).T


@pytest.mark.parametrize("schedule", [*SCHEDULES, "random:3"])
def test_product(schedule: str) -> None:
    np.testing.assert_array_equal(*run(0, schedule))


@pytest.mark.parametrize("name", BUGS)
def test_planted_bug_is_caught(name: str) -> None:
    bug, message = BUGS[name]
    caught = []
    for schedule in SCHEDULES:
        try:
            got, want = run(bug, schedule)
            caught.append("" if np.array_equal(got, want) else "the numbers differ")
        except EmulationError as error:
            caught.append(str(error))
    assert any(caught), "no order shows it"
    if message:
        with pytest.raises(EmulationError, match=message):
            run(bug, "forward")


# What the driver takes and no kernel wants.
ENCODERS = """
#include "vitc/gpu/sm90/tma.h"
extern "C" int run(void* const* args, const int64_t* sizes) {
  CUtensorMap map;
  const cuuint64_t extent[2] = {64, 64}, pitch[1] = {128};
  const cuuint32_t box[2] = {64, 64}, step[2] = {1, 1};
  if (sizes[0] == 2) return cuTensorMapEncodeIm2col(&map, args[0], extent, pitch, box, box);
  return cuTensorMapEncodeTiled(
      &map, CU_TENSOR_MAP_DATA_TYPE_FLOAT16, 2, args[0], extent, pitch, box, step,
      sizes[0] == 0 ? CU_TENSOR_MAP_INTERLEAVE_16B : CU_TENSOR_MAP_INTERLEAVE_NONE,
      CU_TENSOR_MAP_SWIZZLE_128B, CU_TENSOR_MAP_L2_PROMOTION_NONE,
      sizes[0] == 1 ? CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA
                    : CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
}
"""


def test_maps_that_are_not_emulated() -> None:
    library, data = build(ENCODERS), np.zeros((64, 64), np.float16)
    library.run([data], [3])
    for case, message in enumerate(["interleaved layouts", "filling with NaN", "im2col maps"]):
        with pytest.raises(EmulationError, match=f"cuTensorMapEncode.*: {message}"):
            library.run([data], [case])


@pytest.mark.parametrize(("pitch", "box", "message"), [(252, 64, "stride"), (256, 257, "box")])
def test_what_the_driver_refuses(pitch: int, box: int, message: str) -> None:
    with pytest.raises(EmulationError, match=f"cuTensorMapEncodeTiled: .*{message}"):
        run(0, "forward", pitch, box)
