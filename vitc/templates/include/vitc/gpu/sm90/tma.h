// The tensor memory accelerator: copies of matrix tiles from global to shared memory by one thread,
// with zeros for what lies outside of the matrix.
//
// Tiles are 64 elements of 16 bits wide, so that a row is one 128-byte line, and 128-byte swizzled:
// the 16-byte chunk c of row r lies at chunk c ^ (r % 8). That is the layout wgmma reads without
// conflicts.
#pragma once

#if !defined(VITC_EMULATE)
#include <cuda.h>
#endif

#include "vitc/gpu/launch.h"
#include "vitc/gpu/sm90/mbarrier.h"

namespace vitc::gpu::sm90 {

using TensorMap = CUtensorMap;   // a kernel takes it as const __grid_constant__
constexpr int kTileBytes = 128;  // of a row of a tile
constexpr int kTileDepth = 64;   // its elements

#if !defined(VITC_EMULATE)  // else vitc/emu/sm90.h has them
// ---- device
// ----------------------------------------------------------------------------------------------
VITC_DEVICE void prefetch_map(const TensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}
// Copies the tile whose first element is (row, k); its bytes count towards `barrier`.
VITC_DEVICE void copy_tile(void* target, const TensorMap* map, int k, int row, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3}], [%4];" ::"r"(shared_address(target)),
      "l"(map), "r"(k), "r"(row), "r"(shared_address(barrier))
      : "memory");
}
// The same into the same place of every block of the cluster whose bit is set in `blocks`.
VITC_DEVICE void copy_tile_to(void* target, const TensorMap* map, int k, int row, Barrier* barrier,
                              uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::"
      "cluster"
      " [%0], [%1, {%2, %3}], [%4], %5;" ::"r"(shared_address(target)),
      "l"(map), "r"(k), "r"(row), "r"(shared_address(barrier)), "h"(blocks)
      : "memory");
}
// Copies rows [row, ...) of a head; `column` is the first of 64 elements.
VITC_DEVICE void copy_head(void* target, const TensorMap* map, int column, int row, int head,
                           int batch, Barrier* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.4d.shared::cluster.global.mbarrier::complete_tx::bytes"
      " [%0], [%1, {%2, %3, %4, %5}], [%6];" ::"r"(shared_address(target)),
      "l"(map), "r"(column), "r"(row), "r"(head), "r"(batch), "r"(shared_address(barrier))
      : "memory");
}
// Brings `bytes` bytes, a multiple of 16 as the address is, to L2.
VITC_DEVICE void prefetch_bytes(const void* address, int bytes) {
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(address), "r"(bytes) : "memory");
}
#endif

// ---- host
// ------------------------------------------------------------------------------------------------
template <class T>
struct MapType;
template <>
struct MapType<half> {
  static constexpr CUtensorMapDataType value = CU_TENSOR_MAP_DATA_TYPE_FLOAT16;
};
template <>
struct MapType<bfloat16> {
  static constexpr CUtensorMapDataType value = CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
};

#if defined(VITC_EMULATE)
inline decltype(&cuTensorMapEncodeTiled) map_encoder() { return &cuTensorMapEncodeTiled; }
#else
// The driver's encoder, found at run time: libraries do not link with the driver.
inline decltype(&cuTensorMapEncodeTiled) map_encoder() {
  static const auto encoder = [] {
    void* found = nullptr;
    cudaDriverEntryPointQueryResult result{};
    const cudaError_t error = cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &found,
                                                               12000, cudaEnableDefault, &result);
    return error == cudaSuccess ? reinterpret_cast<decltype(&cuTensorMapEncodeTiled)>(found)
                                : nullptr;
  }();
  return encoder;
}
#endif

// A tensor of kRank dimensions, `extent` elements along each, innermost first; `stride` elements
// from one to the next along all but the innermost; copied in boxes. `data` and the strides' bytes
// are multiples of 16. Returns 0 or a CUDA error code. About 1 us.
template <int kRank, class T>
int encode_tensor(TensorMap* map, const T* data, const cuuint64_t (&extent)[kRank],
                  const int64_t (&stride)[kRank - 1], const cuuint32_t (&box)[kRank]) {
  const auto encoder = map_encoder();
  if (encoder == nullptr) return int(cudaErrorCallRequiresNewerDriver);
  cuuint64_t pitch[kRank - 1];
  cuuint32_t step[kRank];
  for (int i = 0; i < kRank; ++i) {
    step[i] = 1;
    if (i > 0) pitch[i - 1] = cuuint64_t(stride[i - 1]) * sizeof(T);
  }
  const CUresult result =
      encoder(map, MapType<T>::value, kRank, const_cast<T*>(data), extent, pitch, box, step,
              CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
              CU_TENSOR_MAP_L2_PROMOTION_L2_128B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  return result == CUDA_SUCCESS ? 0 : int(cudaErrorInvalidValue);
}

// Describes `rows` rows of `depth` elements, `stride` elements apart, for copy_tile() of `box_rows`
// rows at a time.
template <class T>
int encode_map(TensorMap* map, const T* data, int rows, int depth, int64_t stride, int box_rows) {
  return encode_tensor<2>(map, data, {cuuint64_t(depth), cuuint64_t(rows)}, {stride},
                          {cuuint32_t(kTileDepth), cuuint32_t(box_rows)});
}

// Heads of an attention: strides in elements.
template <class T>
struct Heads {
  const T* data;
  int64_t row, head, batch;
};

// Describes [batch, heads, rows, depth] for copy_head() of `box_rows` rows at a time.
template <class T>
int encode_heads(TensorMap* map, const Heads<T>& from, int batch, int heads, int rows, int depth,
                 int box_rows) {
  return encode_tensor<4>(
      map, from.data, {cuuint64_t(depth), cuuint64_t(rows), cuuint64_t(heads), cuuint64_t(batch)},
      {from.row, from.head, from.batch}, {cuuint32_t(kTileDepth), cuuint32_t(box_rows), 1, 1});
}

}  // namespace vitc::gpu::sm90
