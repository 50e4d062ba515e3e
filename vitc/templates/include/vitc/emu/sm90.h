// The functions of vitc/gpu/sm90/{mbarrier,tma,wgmma}.h for the host emulation: the same names,
// arguments and layouts. Time does not pass here: pauses and prefetches do nothing.
#pragma once

#include <type_traits>

#include "vitc/emu/barrier.h"
#include "vitc/emu/cluster.h"
#include "vitc/emu/launch.h"
#include "vitc/emu/mbarrier.h"
#include "vitc/emu/registers.h"
#include "vitc/emu/tensor_copy.h"
#include "vitc/emu/wgmma.h"

#define __grid_constant__

// The emulated card has few multiprocessors, so that persistent blocks have several tiles each.
using cudaError_t = int;
constexpr cudaError_t cudaErrorInvalidValue = 1, cudaErrorCallRequiresNewerDriver = 36;
enum cudaDeviceAttr { cudaDevAttrMultiProcessorCount = 16 };
inline cudaError_t cudaGetDevice(int* device) { return *device = 0; }
inline cudaError_t cudaDeviceGetAttribute(int* value, cudaDeviceAttr, int) {
  *value = 4;
  return 0;
}

namespace vitc::gpu {

inline uint32_t shared_address(const void* pointer) {
  return emu::kSharedBase +
         uint32_t(static_cast<const char*>(pointer) - emu::machine->here->shared.dynamic());
}

namespace sm90 {

using emu::Site;

inline void barrier_init(uint64_t* barrier, int arrivals, Site site = Site::here()) {
  emu::mbarrier_init(barrier, arrivals, site);
}
inline void barrier_init_done() { emu::barrier_fence(); }
inline void barrier_wait(uint64_t* barrier, unsigned parity, Site site = Site::here()) {
  emu::mbarrier_wait(barrier, parity, site);
}
inline void barrier_arrive(uint64_t* barrier, Site site = Site::here()) {
  emu::check_barrier(barrier, site);
  emu::mbarrier_arrive(barrier, 0, site);
}
inline void barrier_expect(uint64_t* barrier, int bytes, Site site = Site::here()) {
  emu::check_barrier(barrier, site);
  emu::mbarrier_arrive(barrier, bytes, site);
}
inline void barrier_arrive_at(uint64_t* barrier, unsigned rank, Site site = Site::here()) {
  emu::mbarrier_arrive(emu::remote(barrier, rank, site), 0, site);
}
inline void named_sync(int id, int threads, Site site = Site::here()) {
  emu::sync_named(unsigned(id), unsigned(threads), site);
}
inline void named_arrive(int id, int threads, Site site = Site::here()) {
  emu::arrive_named(unsigned(id), unsigned(threads), site);
}

inline int fresh_block() { return int(emu::machine->here->index.x); }
inline int fresh_grid_size() { return int(emu::machine->grid.x); }
inline unsigned cluster_rank() { return emu::machine->here->rank; }
inline void cluster_sync(Site site = Site::here()) { emu::sync_cluster(site); }
inline void cluster_start(Site site = Site::here()) { emu::sync_cluster(site); }
inline void send_to(const float (&v)[4], float* local, uint64_t* barrier, unsigned rank,
                    Site site = Site::here()) {
  emu::send(v, local, barrier, rank, site);
}
// fence.proxy.async: what this thread wrote to shared memory, or knows to be written, comes before
// the asynchronous operations that follow.
inline void proxy_fence() { emu::proxy_fence(); }
inline void pause(int) {}
template <int kCount>
void give_back_registers(Site site = Site::here()) {
  emu::set_registers(kCount, false, site);
}
template <int kCount>
void take_registers(Site site = Site::here()) {
  emu::set_registers(kCount, true, site);
}

inline void prefetch_map(const emu::TensorMap*) {}
inline void copy_tile_to(void* target, const emu::TensorMap* map, int k, int row, uint64_t* barrier,
                         uint16_t blocks, Site site = Site::here()) {
  const int32_t first[2] = {k, row};
  emu::tensor_copy(target, map, first, 2, barrier, blocks, site);
}
inline void copy_tile(void* target, const emu::TensorMap* map, int k, int row, uint64_t* barrier,
                      Site site = Site::here()) {
  copy_tile_to(target, map, k, row, barrier, uint16_t(1u << cluster_rank()), site);
}
inline void copy_head(void* target, const emu::TensorMap* map, int column, int row, int head,
                      int batch, uint64_t* barrier, Site site = Site::here()) {
  const int32_t first[4] = {column, row, head, batch};
  emu::tensor_copy(target, map, first, 4, barrier, 1u << cluster_rank(), site);
}
inline void copy_weights(void* target, const emu::TensorMap* map, int k, int group,
                         uint64_t* barrier, Site site = Site::here()) {
  const int32_t first[5] = {k, 0, 0, 0, group};
  emu::tensor_copy(target, map, first, 5, barrier, 1u << cluster_rank(), site);
}
inline void copy_bytes(void* target, const void* source, int bytes, uint64_t* barrier,
                       Site site = Site::here()) {
  emu::bulk_copy(target, source, bytes, barrier, site);
}
inline void prefetch_bytes(const void* address, int bytes, Site site = Site::here()) {
  emu::check_aligned("bulk prefetch", address, 16, site);
  if (bytes <= 0 || bytes % 16 != 0) emu::fail(site, "bulk prefetch of %d bytes", bytes);
  auto* data = static_cast<const volatile char*>(address);
  (void)data[0], (void)data[bytes - 1];  // faults here if they are not there
}

inline void products_begin() { emu::products_fence(); }
inline void products_commit() { emu::products_commit(); }
template <int kPending>
void products_wait(Site site = Site::here()) {
  emu::products_wait(kPending, site);
}
template <int kCount>
void products_use(float (&)[kCount]) {}
inline int opaque(int value) { return value; }

template <class T, int kN>
struct Product {
  static_assert(kN % 8 == 0 && kN >= 8 && kN <= 256);
  static constexpr bool kBfloat = !std::is_same_v<T, half>;

  static void multiply_first(float (&d)[kN / 2], uint64_t a, uint64_t b, Site site = Site::here()) {
    emu::issue_product({d, a, b, {}, kN, 0, false, false, kBfloat, true, {}}, site);
  }
  static void multiply_add(float (&d)[kN / 2], uint64_t a, uint64_t b, Site site = Site::here()) {
    emu::issue_product({d, a, b, {}, kN, 0, false, false, kBfloat, false, {}}, site);
  }
};

template <class T, int kN>
struct RegisterProduct {
  static void multiply_add(float (&d)[kN / 2], const uint32_t (&a)[4], uint64_t b,
                           Site site = Site::here()) {
    emu::issue_product(
        {d, 0, b, {a[0], a[1], a[2], a[3]}, kN, 0, true, true, Product<T, kN>::kBfloat, false, {}},
        site);
  }
};

}  // namespace sm90
}  // namespace vitc::gpu
