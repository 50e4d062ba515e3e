// Tensor maps: what cuTensorMapEncodeTiled of the CUDA driver checks, and the plain struct that
// stands for its opaque one. Names and values are those of cuda.h as far as kernels use them.
// Refused here although the driver takes them, since no kernel wants them: im2col, interleaved
// layouts, element strides, NaN outside of the tensor, and boxes whose rows are shorter than the
// swizzle's span.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>

namespace vitc::emu {

struct alignas(64) TensorMap {
  static constexpr int kMostRank = 5;
  static constexpr uint32_t kEncoded = 0x7e4503a9;

  uint32_t encoded;  // kEncoded
  uint32_t rank, element_bytes;
  uint32_t span;  // bytes of a row that are swizzled together; 16: not swizzled
  const char* data;
  uint64_t pitch[kMostRank - 1];  // bytes
  uint32_t last[kMostRank];       // extent - 1
  uint16_t box[kMostRank];

  unsigned box_bytes() const {
    unsigned bytes = element_bytes;
    for (unsigned i = 0; i < rank; ++i) bytes *= box[i];
    return bytes;
  }
};
static_assert(sizeof(TensorMap) == 128);

inline __attribute__((visibility("hidden"))) thread_local char error_text[1024] = "";

}  // namespace vitc::emu

using CUtensorMap = vitc::emu::TensorMap;
using cuuint64_t = uint64_t;
using cuuint32_t = uint32_t;
enum CUresult { CUDA_SUCCESS = 0, CUDA_ERROR_INVALID_VALUE = 1 };
enum CUtensorMapDataType {
  CU_TENSOR_MAP_DATA_TYPE_FLOAT16 = 6,
  CU_TENSOR_MAP_DATA_TYPE_FLOAT32 = 7,
  CU_TENSOR_MAP_DATA_TYPE_BFLOAT16 = 9
};
enum CUtensorMapInterleave {
  CU_TENSOR_MAP_INTERLEAVE_NONE = 0,
  CU_TENSOR_MAP_INTERLEAVE_16B = 1,
  CU_TENSOR_MAP_INTERLEAVE_32B = 2
};
enum CUtensorMapSwizzle {
  CU_TENSOR_MAP_SWIZZLE_NONE = 0,
  CU_TENSOR_MAP_SWIZZLE_32B = 1,
  CU_TENSOR_MAP_SWIZZLE_64B = 2,
  CU_TENSOR_MAP_SWIZZLE_128B = 3
};
enum CUtensorMapL2promotion {
  CU_TENSOR_MAP_L2_PROMOTION_NONE = 0,
  CU_TENSOR_MAP_L2_PROMOTION_L2_128B = 2
};
enum CUtensorMapFloatOOBfill {
  CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE = 0,
  CU_TENSOR_MAP_FLOAT_OOB_FILL_NAN_REQUEST_ZERO_FMA = 1
};

namespace vitc::emu {

// What is wrong with the arguments, or null.
inline const char* refuse_map(const CUtensorMap* map, uint32_t element_bytes, uint32_t rank,
                              const void* data, const uint64_t* extent, const uint64_t* pitch,
                              const uint32_t* box, const uint32_t* step, uint32_t span) {
  if (reinterpret_cast<uintptr_t>(map) % 64 != 0) return "the map is not 64-byte aligned";
  if (rank < 1 || rank > TensorMap::kMostRank) return "the rank is not 1 to 5";
  if (data == nullptr || reinterpret_cast<uintptr_t>(data) % 16 != 0) {
    return "the tensor is not 16-byte aligned";
  }
  for (uint32_t i = 0; i < rank; ++i) {
    if (extent[i] == 0 || extent[i] > uint64_t(1) << 32) return "an extent is not 1 to 2^32";
    if (box[i] == 0 || box[i] > 256) return "a box extent is not 1 to 256";
    if (step[i] != 1) return "element strides are not emulated";
    if (i > 0 && (pitch[i - 1] % 16 != 0 || pitch[i - 1] >= uint64_t(1) << 40)) {
      return "a stride is no multiple of 16 bytes below 2^40";
    }
  }
  const uint32_t row = box[0] * element_bytes;
  if (row % 16 != 0) return "a row of the box is no multiple of 16 bytes";
  if (span > 16 && row > span) return "a row of the box is longer than the swizzle's span";
  if (span > 16 && row < span) return "rows shorter than the swizzle's span are not emulated";
  return nullptr;
}

inline CUresult refuse_encoding(const char* function, const char* why) {
  std::snprintf(error_text, sizeof error_text, "%s: %s", function, why);
  return CUDA_ERROR_INVALID_VALUE;
}

}  // namespace vitc::emu

template <class... Arguments>
CUresult cuTensorMapEncodeIm2col(const Arguments&...) {
  return vitc::emu::refuse_encoding("cuTensorMapEncodeIm2col", "im2col maps are not emulated");
}

inline CUresult cuTensorMapEncodeTiled(CUtensorMap* map, CUtensorMapDataType type, cuuint32_t rank,
                                       void* data, const cuuint64_t* extent,
                                       const cuuint64_t* pitch, const cuuint32_t* box,
                                       const cuuint32_t* step, CUtensorMapInterleave interleave,
                                       CUtensorMapSwizzle swizzle, CUtensorMapL2promotion,
                                       CUtensorMapFloatOOBfill fill) {
  const uint32_t element_bytes = type == CU_TENSOR_MAP_DATA_TYPE_FLOAT32 ? 4 : 2;
  const uint32_t span = 16u << swizzle;
  const char* wrong =
      vitc::emu::refuse_map(map, element_bytes, rank, data, extent, pitch, box, step, span);
  if (interleave != CU_TENSOR_MAP_INTERLEAVE_NONE) wrong = "interleaved layouts are not emulated";
  if (fill != CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE) wrong = "filling with NaN is not emulated";
  if (wrong != nullptr) return vitc::emu::refuse_encoding("cuTensorMapEncodeTiled", wrong);
  *map = {};
  map->encoded = CUtensorMap::kEncoded;
  map->rank = rank;
  map->element_bytes = element_bytes;
  map->span = span;
  map->data = static_cast<const char*>(data);
  for (uint32_t i = 0; i < rank; ++i) {
    map->last[i] = uint32_t(extent[i] - 1);
    map->box[i] = uint16_t(box[i]);
    if (i > 0) map->pitch[i - 1] = pitch[i - 1];
  }
  return CUDA_SUCCESS;
}
