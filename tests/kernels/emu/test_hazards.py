"""What kernels, blocks, warps and lanes do to each other when one is ahead: emulated, each guarded
and not.
"""

from __future__ import annotations

import numpy as np
import pytest
from kernels.emu.emulation import SCHEDULES, EmulationError, build

RANDOM = tuple(f"random:{seed}" for seed in range(1, 33))
HEAD = """
#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/mbarrier.h"
#include "vitc/gpu/sm90/wgmma.h"
using namespace vitc::gpu;
using namespace vitc::gpu::sm90;
"""


BODIES: dict[str, str] = {}


class Kernel:
    """A kernel over (float* out, int variant). All of them are built as one source."""

    def __init__(self, body: str, *, cluster: int = 1, threads: int = 128) -> None:
        self.name, self.threads = f"kernel{len(BODIES)}", threads
        BODIES[self.name] = f"""
VITC_KERNEL({threads}, 1) {self.name}([[maybe_unused]] float* out, int variant) {{
{body}
}}
extern "C" int run_{self.name}(void* const* args, const int64_t* sizes) {{
  return launch_clusters({{"kernel", Dim3({cluster}), {threads}, 16384, nullptr}}, {cluster}, false,
                         {self.name}, (float*)args[0], int(sizes[0]));
}}
"""

    def __call__(self, variant: int, schedule: str = "forward") -> float:
        """The sum of what the threads of a block leave in `out`, which the kernel before is at work
        on until it is waited for.
        """
        library, out = build(HEAD + "".join(BODIES.values())), np.zeros(self.threads, np.float32)
        entry = f"run_{self.name}"
        return float(
            library.run([out], [variant], schedule=schedule, entry=entry, held=[0])[0].sum()
        )


# After its wait, a warp overwrites what products of its warpgroup read: (0) behind a barrier, (1)
# its own rows of A, (2) those of another warp, (3) B.
OPERANDS = Kernel("""
  wait_for_previous_kernel();
  half* tile = dynamic_shared<half>();
  half ones[8];
  for (half& x : ones) x = to_half(1.f);
  for (int i = thread(); i < 1024; i += 128) store<8>(tile + i * 8, ones);
  proxy_fence();
  sync_block();
  float d[16];
  products_begin();
  Product<half, 32>::multiply_first(d, tile_descriptor(tile), tile_descriptor(tile + 4096));
  products_commit();
  products_wait<0>();
  if (variant == 0) sync_block();
  const int row = variant == 1 ? warp() * 16 : variant == 2 ? (3 - warp()) * 16 : 64;
  store<8>(tile + row * 64, ones);
  out[thread()] = d[0];
""")


@pytest.mark.parametrize("schedule", [*SCHEDULES, *RANDOM[:4]])
def test_operands_that_other_warps_may_still_read(schedule: str) -> None:
    for variant in (0, 1):
        assert OPERANDS(variant, schedule) == 128 * 16
    for variant in (2, 3):
        with pytest.raises(EmulationError, match=r"write of 16 bytes .* may still read \(.*:\d+\)"):
            OPERANDS(variant, schedule)


# Thread 0 waits alone; then its warp meets (0), or goes to the cluster's barrier as it is (1).
WHOLE = Kernel(
    """
  Barrier* barrier = dynamic_shared<Barrier>();
  if (thread() == 0) {
    barrier_init(barrier, 1);
    barrier_arrive(barrier);
    barrier_wait(barrier, 0);
  }
  if (variant == 0) sync_warp();
  cluster_sync();
""",
    cluster=2,
)


def test_a_cluster_barrier_wants_whole_warps() -> None:
    WHOLE(0)
    with pytest.raises(EmulationError, match="cluster barrier in a divergent warp: thread 0 has"):
        WHOLE(1)


# Warp 0 hands values to warp 1 when (0) all its lanes have written them, (1) lane 0 has.
AHEAD = Kernel(
    """
  wait_for_previous_kernel();
  float* values = dynamic_shared<float>();
  Barrier* ready = reinterpret_cast<Barrier*>(values + 32);
  if (thread() == 0) barrier_init(ready, 1);
  sync_block();
  if (warp() == 0) {
    values[lane()] = 1;
    if (variant == 0) sync_warp();
    if (lane() == 0) barrier_arrive(ready);
  } else {
    barrier_wait(ready, 0);
    out[thread()] = values[lane()];
  }
""",
    threads=64,
)


def test_a_lane_ahead_of_its_warp_shows_in_random_orders() -> None:
    orders = [*SCHEDULES, *RANDOM]
    assert [AHEAD(0, order) for order in orders] == [32] * len(orders)
    assert any(np.isnan(AHEAD(1, order)) for order in RANDOM)


# Writes to device memory when the kernel before has been waited for (0), or not: by store (1) or
# an ordinary instruction (2).
FOLLOWS = Kernel("""
  if (variant == 0) wait_for_previous_kernel();
  const float one[1] = {1};
  if (variant == 2) {
    out[thread()] = 1;
  } else {
    store<1>(out + thread(), one);
  }
""")


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_accesses_wait_for_the_kernel_before(schedule: str) -> None:
    assert FOLLOWS(0, schedule) == 128
    with pytest.raises(EmulationError, match=r"store to device memory before wait_for_prev"):
        FOLLOWS(1, schedule)
    with pytest.raises(EmulationError, match=r"byte \d+ of args\[0\] .* before wait_for_prev"):
        FOLLOWS(2, schedule)


# A block writes into the other one's memory after the cluster's barrier (0), or before (1), or
# that one does not wait (2).
REACH = Kernel(
    """
  float* values = dynamic_shared<float>();
  Barrier* barrier = reinterpret_cast<Barrier*>(values + 4 * 128);
  if (thread() == 0) {
    barrier_init(barrier, 1);
    barrier_init_done();
    barrier_expect(barrier, 16 * 128);
  }
  sync_warp();
  if (variant != 1) cluster_start();
  wait_for_previous_kernel();
  const float ones[4] = {1, 1, 1, 1};
  send_to(ones, values + 4 * thread(), barrier, cluster_rank() ^ 1);
  if (variant != 2) barrier_wait(barrier, 0);
  if (cluster_rank() == 0) out[thread()] = values[4 * thread() + 3];
""",
    cluster=2,
)


def test_blocks_reach_each_other_behind_a_barrier() -> None:
    assert REACH(0) == 128
    with pytest.raises(EmulationError, match=r"block 1 of the cluster may not have begun"):
        REACH(1)
    with pytest.raises(EmulationError, match=r"block \d of the cluster has exited"):
        REACH(2)
