// Barriers in shared memory (mbarrier), barriers among some warps of a block, and clusters of
// blocks.
//
// A barrier's phase ends when as many threads have arrived as it was made for and all bytes that
// were announced have landed. Waiting names the parity of the phase: the first phase is 0, and
// waiting for parity 1 on a fresh barrier returns at once.
#pragma once

#include "vitc/gpu/device.h"
#include "vitc/gpu/ptx.h"

namespace vitc::gpu::sm90 {

using Barrier = uint64_t;  // lives in shared memory

}  // namespace vitc::gpu::sm90

#if defined(VITC_EMULATE)
#include "vitc/emu/sm90.h"
#else

namespace vitc::gpu::sm90 {

// ---- mbarriers
// -----------------------------------------------------------------------------------------
VITC_DEVICE void barrier_init(Barrier* barrier, int arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(shared_address(barrier)),
               "r"(arrivals)
               : "memory");
}
// Makes initialised barriers visible to the copy engine and to the other blocks of the cluster.
VITC_DEVICE void barrier_init_done() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
}
VITC_DEVICE void barrier_wait(Barrier* barrier, unsigned parity) {
  asm volatile(
      "{\n"
      ".reg .pred done;\n"
      "again_%=:\n"
      "mbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again_%=;\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(parity)
      : "memory");
}
VITC_DEVICE void barrier_arrive(Barrier* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(shared_address(barrier))
               : "memory");
}
// Arrives, and announces `bytes` that copies will bring.
VITC_DEVICE void barrier_expect(Barrier* barrier, int bytes) {
  asm volatile(
      "mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(shared_address(barrier)),
      "r"(bytes)
      : "memory");
}
// Arrives at the same barrier of another block of the cluster. Without .release.cluster, which
// would wait for all of this thread's memory traffic and halves the speed of a GEMM: what is handed
// over here is a buffer that wgmma has finished reading, not data.
VITC_DEVICE void barrier_arrive_at(Barrier* barrier, unsigned rank) {
  asm volatile(
      "{\n"
      ".reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n"
      "}" ::"r"(shared_address(barrier)),
      "r"(rank)
      : "memory");
}

// ---- named barriers among warps of a block: ids 1 to 15, 0 is sync_block()'s
// -----------------------------
VITC_DEVICE void named_sync(int id, int threads) {
  asm volatile("barrier.cta.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
VITC_DEVICE void named_arrive(int id, int threads) {
  asm volatile("barrier.cta.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

// ---- block() and grid_size().x, read where they stand and not kept from before
// ------------------------------
VITC_DEVICE int fresh_block() {
  int block;
  asm volatile("mov.u32 %0, %%ctaid.x;" : "=r"(block));
  return block;
}
VITC_DEVICE int fresh_grid_size() {
  int size;
  asm volatile("mov.u32 %0, %%nctaid.x;" : "=r"(size));
  return size;
}

// ---- clusters
// ------------------------------------------------------------------------------------------
VITC_DEVICE unsigned cluster_rank() {
  unsigned rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
// All threads of all blocks of the cluster; warps must be whole when they come here.
VITC_DEVICE void cluster_sync() {
  asm volatile(
      "barrier.cluster.arrive.release.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
// All threads of all blocks of the cluster have begun, and see the barriers that were initialised
// before barrier_init_done(); warps must be whole. No wait for memory traffic, unlike
// cluster_sync().
VITC_DEVICE void cluster_start() {
  asm volatile(
      "barrier.cluster.arrive.relaxed.aligned;\n"
      "barrier.cluster.wait.acquire.aligned;" ::
          : "memory");
}
// Where `local` lies in the block of that rank.
VITC_DEVICE uint32_t address_in(const void* local, unsigned rank) {
  uint32_t address;
  asm("mapa.shared::cluster.u32 %0, %1, %2;"
      : "=r"(address)
      : "r"(shared_address(local)), "r"(rank));
  return address;
}
// Writes 16 bytes into the shared memory of another block, at the place that `local` has in this
// one's, and counts them at its `barrier`, by which it knows that they are there. The memory model
// wants that wait to acquire for the cluster; barrier_wait() does for the block: all that ptxas
// would add for it is that L1 is emptied, which shared memory does not go through.
VITC_DEVICE void send_to(const float (&v)[4], float* local, Barrier* barrier, unsigned rank) {
  asm volatile(
      "st.async.shared::cluster.mbarrier::complete_tx::bytes.v4.f32 [%0], {%2, %3, %4, %5}, "
      "[%1];" ::"r"(address_in(local, rank)),
      "r"(address_in(barrier, rank)), "f"(v[0]), "f"(v[1]), "f"(v[2]), "f"(v[3])
      : "memory");
}

// About so many nanoseconds.
VITC_DEVICE void pause(int nanoseconds) { asm volatile("nanosleep.u32 %0;" ::"r"(nanoseconds)); }

// ---- registers of a warpgroup
// ----------------------------------------------------------------------------
template <int kCount>
VITC_DEVICE void give_back_registers() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kCount));
}
template <int kCount>
VITC_DEVICE void take_registers() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kCount));
}

}  // namespace vitc::gpu::sm90

#endif
