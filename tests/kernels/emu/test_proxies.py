"""Fences of the async proxy, of barriers' initialisation and of registers: emulated, each kept and
left out.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernels.emu.emulation import SCHEDULES, EmulationError, build

# D[64, 32] = A[64, 64] * B[32, 64]^T. B comes by a tensor copy, A as `way` says; `fence` says who
# fences what came, `init` who fences the barrier.
PRODUCT = """
#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tma.h"
#include "vitc/gpu/sm90/wgmma.h"
using namespace vitc::gpu;
using namespace vitc::gpu::sm90;
enum Way { kStores, kAsyncCopies, kPlainStores, kCopyOverStores };
enum Fence { kNobody, kWriters, kReaders, kOneWriter, kOneReader, kTooEarly };
enum Init { kNotFenced, kFenced, kFencedByAnother, kFencedForAll };
constexpr int kBytesA = 8192, kBytesB = 4096;

VITC_KERNEL(128, 1) product(float* out, const half* a, TensorMap map_a, TensorMap map_b, int way,
                            int fence, int init) {
  char* memory = dynamic_shared<char>();
  Barrier* full = reinterpret_cast<Barrier*>(memory + kBytesA + kBytesB);
  if (thread() == 0) {
    barrier_init(full, 1);
    if (init == kFenced) barrier_init_done();
    if (init == kFencedForAll) proxy_fence();
  }
  if (init == kFencedByAnother && thread() == 1) barrier_init_done();
  sync_block();
  if (thread() == 0) {
    barrier_expect(full, kBytesB + (way == kCopyOverStores ? kBytesA : 0));
    copy_tile(memory + kBytesA, &map_b, 0, 0, full);
  }

  if (fence == kTooEarly && way != kAsyncCopies) proxy_fence();
  for (int chunk = thread(); chunk < 512; chunk += 128) {
    const int row = chunk / 8, column = chunk % 8;
    half* to = reinterpret_cast<half*>(memory + row * 128 + (column ^ row % 8) * 16);
    half v[8];
    load<8>(v, a + chunk * 8);
    if (way == kAsyncCopies) async_copy_16(to, a + chunk * 8, true);
    if (way == kStores) store<8>(to, v);
    if (way == kCopyOverStores) store<8>(to, {});
    for (int i = 0; way == kPlainStores && i < 8; ++i) to[i] = v[i];
  }
  async_copy_commit();
  if (fence == kTooEarly && way == kAsyncCopies) proxy_fence();
  async_copy_wait<0>();
  if (fence == kWriters || (fence == kOneWriter && thread() == 5)) proxy_fence();
  sync_block();
  if (fence == kReaders || (fence == kOneReader && thread() == 0)) proxy_fence();
  if (way == kCopyOverStores && thread() == 0) copy_tile(memory, &map_a, 0, 0, full);
  barrier_wait(full, 0);

  float d[16];
  const uint64_t tile_a = tile_descriptor(memory), tile_b = tile_descriptor(memory + kBytesA);
  products_begin();
  Product<half, 32>::multiply_first(d, tile_a, tile_b);
  for (int k = 1; k < 4; ++k) {
    Product<half, 32>::multiply_add(d, tile_a + k * kNextColumns, tile_b + k * kNextColumns);
  }
  products_commit();
  products_wait<0>();
  for (int i = 0; i < 16; ++i) {
    const int row = warp() * 16 + lane() / 4 + i / 2 % 2 * 8;
    out[row * 32 + i / 4 * 8 + lane() % 4 * 2 + i % 2] = d[i];
  }
}
extern "C" int run(void* const* args, const int64_t* sizes) {
  TensorMap a, b;
  int status = encode_map(&a, (const half*)args[1], 64, 64, 64, 64);
  if (status == 0) status = encode_map(&b, (const half*)args[2], 32, 64, 64, 32);
  if (status != 0) return status;
  const LaunchShape shape{"product", Dim3(1), 128, kBytesA + kBytesB + 8, nullptr};
  return launch_clusters(shape, 1, false, product, (float*)args[0], (const half*)args[1], a, b,
                         int(sizes[0]), int(sizes[1]), int(sizes[2]));
}
"""
WAYS = ("stores", "async copies", "plain stores", "copy over stores")
FENCES = ("nobody", "writers", "readers", "one writer", "one reader", "too early")
INITS = ("not fenced", "fenced", "fenced by another", "fenced for all")
UNSEEN = r"product, block \(0,0,0\), thread \d+: {} at shared offset \d+, which thread \d+ wrote "
UNSEEN += r"\(.*:\d+\): no fence.proxy.async since \(.*:\d+\)"


def run_product(way: str, fence: str, schedule: str, init: str = "fenced") -> None:
    rng = np.random.default_rng(0)
    a = rng.integers(-2, 3, (64, 64)).astype(np.float16)
    b = rng.integers(-2, 3, (32, 64)).astype(np.float16)
    numbers = [WAYS.index(way), FENCES.index(fence), INITS.index(init)]
    out = np.full((64, 32), np.nan, np.float32)
    got = build(PRODUCT).run([out, a, b], numbers, schedule=schedule)[0]
    np.testing.assert_array_equal(got, a.astype(np.float32) @ b.astype(np.float32).T)


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("fence", FENCES)
@pytest.mark.parametrize("way", ["stores", "async copies", "copy over stores"])
def test_writes_are_fenced(way: str, fence: str, schedule: str) -> None:
    copied = way == "copy over stores"  # by thread 0, which is who "one reader" means
    if fence in ("writers", "readers") or (copied and fence == "one reader"):
        run_product(way, fence, schedule)
        return
    with pytest.raises(
        EmulationError, match=UNSEEN.format("tensor copy" if copied else "wgmma operand")
    ):
        run_product(way, fence, schedule)


@pytest.mark.parametrize("fence", ["nobody", "writers"])
def test_a_plain_store_is_refused(fence: str) -> None:
    with pytest.raises(EmulationError, match=r"wgmma operand at .* neither by store"):
        run_product("plain stores", fence, "forward")


@pytest.mark.parametrize("init", INITS)
def test_barriers_are_fenced(init: str) -> None:
    if init in ("fenced", "fenced for all"):
        run_product("stores", "writers", "forward", init)
        return
    with pytest.raises(EmulationError, match=r"mbarrier that thread 0 initialised .*no fence.mbar"):
        run_product("stores", "writers", "forward", init)


# D[64, 16] = the sum of A * B over two groups of products, A in registers; all elements are ones.
REGISTERS = """
#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/wgmma.h"
using namespace vitc::gpu;
using namespace vitc::gpu::sm90;

VITC_KERNEL(128, 1) ones(float* out, int bug) {
  half* tile = dynamic_shared<half>();
  half one[8];
  for (half& x : one) x = to_half(1.f);
  store<8>(tile + thread() * 8, one);
  proxy_fence();
  sync_block();
  float d[16] = {};
  auto& sums = reinterpret_cast<float(&)[8]>(d);
  for (int group = 0; group < 2; ++group) {
    uint32_t a[4];
    for (uint32_t& x : a) x = pack<half>(1, 1);
    if (bug != group) products_begin();
    RegisterProduct<half, 16>::multiply_add(sums, a, transposed_descriptor(tile, 2048));
    if (bug == 2) Product<half, 32>::multiply_add(d, tile_descriptor(tile), tile_descriptor(tile));
    products_commit();
  }
  products_wait<0>();
  for (int i = 0; i < 8; ++i) out[thread() * 8 + i] = d[i];
}
extern "C" int run(void* const* args, const int64_t* sizes) {
  return launch_clusters({"ones", Dim3(1), 128, 2048, nullptr}, 1, false, ones, (float*)args[0],
                         int(sizes[0]));
}
"""
REGISTER_BUGS = {
    0: "wgmma on registers that were not fenced since the last wait",
    1: "wgmma with A in registers that were not fenced since the last commit",
    2: "wgmma of 32 columns on the sums of another width",
}


def test_registers_are_fenced() -> None:
    blank = np.full(1024, np.nan, np.float32)
    library = build(REGISTERS)
    np.testing.assert_array_equal(library.run([blank], [-1])[0], 32)
    for bug, message in REGISTER_BUGS.items():
        with pytest.raises(EmulationError, match=message):
            library.run([blank], [bug])
