// Where a kernel's rows come from. A source maps (row, k) to a place:
//
//   using T = element type in memory;
//   static constexpr bool kVector;     chunks of 16 / sizeof(storage) elements along k, beginning
//                                      at multiples of that, are contiguous, aligned to their size
//                                      (at most 16 bytes), and wholly present or wholly zero
//   struct Row; Row row(int r) const;  what depends on the row alone; once per thread and row
//   int at(Row, int k) const;          elements from base(); -1 stands for zero(s)
//   const T* base() const;             any valid, 16-byte aligned address
//
// Generated text states its own (templates/gpu/functors.jinja), from the operand's index map;
// WindowRows of rowwise.cuh is that of convolutions, MatrixRows the plain one. Offsets are 32-bit
// counts of elements: selection refuses operands of 2^31 elements or more
// (codegen/targets/gpu/kernel.py).
#pragma once

#include "vitc/gpu/device.h"

namespace vitc::gpu {

struct OffsetRow {
  int offset;  // -1: a row of zeros
};

// Rows of a row-major matrix: element k of row r is base[r * kStride + k].
template <class T_, int kStride, bool kAligned = (kStride * sizeof(T_)) % 16 == 0>
struct MatrixRows {
  using T = T_;
  using Row = OffsetRow;
  static constexpr bool kVector = kAligned;
  const T* data;

  VITC_DEVICE Row row(int r) const { return {r * kStride}; }
  VITC_DEVICE int at(Row row, int k) const { return row.offset + k; }
  VITC_DEVICE const T* base() const { return data; }
};

}  // namespace vitc::gpu
