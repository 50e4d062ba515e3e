// The functions of vitc/gpu/ptx.h for the host emulation: the same names, arguments and layouts.
#pragma once

#include "vitc/emu/async_copy.h"
#include "vitc/emu/ldmatrix.h"
#include "vitc/emu/mma.h"

namespace vitc::gpu {

static_assert(kWarp == 32, "these are instructions of NVIDIA's warp of 32 lanes");

using emu::Site;

inline void ldmatrix_x1(uint32_t (&r)[1], const void* row, Site site = Site::here()) {
  emu::ldmatrix<1, false>(r, row, site);
}
inline void ldmatrix_x2(uint32_t (&r)[2], const void* row, Site site = Site::here()) {
  emu::ldmatrix<2, false>(r, row, site);
}
inline void ldmatrix_x4(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  emu::ldmatrix<4, false>(r, row, site);
}
inline void ldmatrix_x2_trans(uint32_t (&r)[2], const void* row, Site site = Site::here()) {
  emu::ldmatrix<2, true>(r, row, site);
}
inline void ldmatrix_x4_trans(uint32_t (&r)[4], const void* row, Site site = Site::here()) {
  emu::ldmatrix<4, true>(r, row, site);
}

inline void mma_f16_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        Site site = Site::here()) {
  emu::mma<emu::MmaF16, 16>(d, a, b, site);
}
inline void mma_bf16_k16(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                         Site site = Site::here()) {
  emu::mma<emu::MmaBf16, 16>(d, a, b, site);
}
inline void mma_f16_k8(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                       Site site = Site::here()) {
  emu::mma<emu::MmaF16, 8>(d, a, b, site);
}
inline void mma_tf32_k8(float (&d)[4], const uint32_t (&a)[4], const uint32_t (&b)[2],
                        Site site = Site::here()) {
  emu::mma<emu::MmaTf32, 8>(d, a, b, site);
}
inline void mma_tf32_k4(float (&d)[4], const uint32_t (&a)[2], const uint32_t (&b)[1],
                        Site site = Site::here()) {
  emu::mma<emu::MmaTf32, 4>(d, a, b, site);
}
inline uint32_t round_tf32(float value) { return emu::round_tf32(value); }

template <class T>
uint32_t pack(float low, float high) {
  T l = from_float<T>(low), h = from_float<T>(high);
  return uint32_t(l.bits) | uint32_t(h.bits) << 16;
}

inline void async_copy_16(void* target, const void* source, bool copy, Site site = Site::here()) {
  emu::async_copy(target, source, 16, copy ? 16 : 0, site);
}
inline void async_copy_commit() { emu::async_copy_commit(); }
template <int kPending>
void async_copy_wait() {
  emu::async_copy_wait(kPending);
}

// Launches do not overlap here; but what a test holds as the previous kernel's is let go.
inline void wait_for_previous_kernel() {
  if (!emu::machine->here->follows) emu::device_memory.let_go();
  emu::machine->here->follows = true;
}
inline void let_next_kernel_start() {}

}  // namespace vitc::gpu
