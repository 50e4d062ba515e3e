// Where the rows of A come from. A functor has
//   using Element = float | bf16;
//   static constexpr int64_t kStride;   // > 0: row m is K elements at data + m * kStride, readable
//                                       //      in place; 0: only copy_row
//   template <class T> void copy_row(int64_t m, T* dst) const;   // K elements, converted to T
#pragma once
#include "vitc/cpu/simd.h"

namespace vitc {
inline namespace VITC_ISA {

template <class T, int64_t kK, int64_t kRowStride = kK>
struct DenseRows {
  using Element = T;
  static constexpr int64_t kStride = kRowStride;
  const T* data;

  template <class To>
  VITC_INLINE void copy_row(int64_t m, To* dst) const {
    copy(dst, data + m * kStride, kK);
  }
};

// Row m starts at element map(m) of data; a row of zeros when that is negative.
template <class T, int64_t kK, class Map>
struct MappedRows {
  using Element = T;
  static constexpr int64_t kStride = 0;
  const T* data;
  Map map;

  template <class To>
  VITC_INLINE void copy_row(int64_t m, To* dst) const {
    const int64_t offset = map(m);
    if (offset < 0)
      fill_zero(dst, kK);
    else
      copy(dst, data + offset, kK);
  }
};

// Columns [k, k + kRun) of row m start at element map(m, k), zeros when that is negative.
template <class T, int64_t kK, int64_t kRun, class Map>
struct GatherRows {
  static_assert(kK % kRun == 0, "runs must fill the row");
  using Element = T;
  static constexpr int64_t kStride = 0;
  const T* data;
  Map map;

  template <class To>
  VITC_INLINE void copy_row(int64_t m, To* dst) const {
    for (int64_t k = 0; k < kK; k += kRun) {
      const int64_t offset = map(m, k);
      if (offset < 0)
        fill_zero(dst + k, kRun);
      else
        copy(dst + k, data + offset, kRun);
    }
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
