// What a product needs whose W does not come as tile.h wants it: unpacked.
#pragma once

#include "vitc/gpu/sm90/tile.h"

namespace vitc::gpu::sm90 {

#if !defined(VITC_EMULATE)  // else vitc/emu/sm90.h has them
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
