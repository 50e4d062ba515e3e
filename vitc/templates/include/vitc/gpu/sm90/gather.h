// What a product needs whose operands do not come as tile.h wants them: W unpacked, and tiles of A
// that threads fill by cp.async.
#pragma once

#include "vitc/gpu/sm90/tile.h"

namespace vitc::gpu::sm90 {

#if !defined(VITC_EMULATE)  // else vitc/emu/sm90.h has them
// What this thread has written to shared memory, or knows to be written, comes before the
// asynchronous operations that follow, here or behind a barrier. wgmma and tensor copies reach
// memory by another way, the async proxy, than stores and cp.async, the generic proxy; only their
// own completion orders the two without a fence (PTX ISA, "Async Proxy", "membar, fence").
VITC_DEVICE void proxy_fence() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// Copies rows of W from the first of column group `group` on, as encode_weights() describes them.
VITC_DEVICE void copy_weights(void* target, const TensorMap* map, int k, int group,
                              Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.5d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %3, %3, %4}], [%5];" ::"r"(shared_address(target)),
      "l"(map), "r"(k), "r"(0), "r"(group), "r"(shared_address(barrier))
      : "memory");
}
#endif

// Describes W[rows, depth] for copies of `columns` rows that arrive in the order of packed weights
// (tile.h): row 8 q + 2 j + e of a column group is element (e, q, j) of the box.
template <class T>
int encode_weights(TensorMap* map, const T* w, int rows, int depth, int columns) {
  const int64_t row = depth;
  return encode_tensor<5>(map, w, {cuuint64_t(depth), 2, 4, 4, cuuint64_t(rows / kColumnGroup)},
                          {row, 8 * row, 2 * row, kColumnGroup * row},
                          {cuuint32_t(kTileDepth), 2, 4, 4, cuuint32_t(columns / kColumnGroup)});
}

}  // namespace vitc::gpu::sm90
