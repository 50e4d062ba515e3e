// Where a GEMM's operand rows come from. A source maps (row, k) to an address:
//
//   using T = element type in memory;
//   static constexpr bool kVector;       chunks of 16 / sizeof(storage) elements along k, beginning
//   at
//                                        multiples of that, are contiguous, aligned to their size
//                                        (at most 16 bytes), and wholly present or wholly zero
//   struct Row;  Row row(int r) const;   what depends on the row alone; computed once per thread
//   and row const T* at(Row, int k) const;       null stands for zero(s) const T* base() const; any
//   valid, 16-byte aligned address
//
// Offsets are 32-bit counts of elements: a launcher refuses operands of 2^31 elements or more.
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
  VITC_DEVICE const T* at(Row row, int k) const { return data + row.offset + k; }
  VITC_DEVICE const T* base() const { return data; }
};

// The same, renamed: `Map` is a functor int(int row) that gives the matrix row to read, or -1 for
// zeros (window partition, cyclic shift, class-token slice...).
template <class T_, int kStride, class Map>
struct MappedRows {
  using T = T_;
  using Row = OffsetRow;
  static constexpr bool kVector = (kStride * sizeof(T_)) % 16 == 0;
  const T* data;
  Map map;

  VITC_DEVICE Row row(int r) const {
    int from = map(r);
    return {from < 0 ? -1 : from * kStride};
  }
  VITC_DEVICE const T* at(Row row, int k) const {
    return row.offset < 0 ? nullptr : data + row.offset + k;
  }
  VITC_DEVICE const T* base() const { return data; }
};

// Row r is patch r of a batch of NCHW images, k runs over (channel, y, x) of the patch as a
// convolution weight does. Patches do not overlap; a rest of the image that fills no patch is left
// out.
template <class T_, int kChannels, int kHeight, int kWidth, int kPatchH, int kPatchW>
struct PatchRows {
  using T = T_;
  using Row = OffsetRow;
  static constexpr int kRowsY = kHeight / kPatchH, kRowsX = kWidth / kPatchW;
  static constexpr bool kVector = kPatchW % 8 == 0 && kWidth % 8 == 0;
  const T* data;

  VITC_DEVICE Row row(int r) const {
    int image = r / (kRowsY * kRowsX), patch = r % (kRowsY * kRowsX);
    int y = patch / kRowsX * kPatchH, x = patch % kRowsX * kPatchW;
    return {(image * kChannels * kHeight + y) * kWidth + x};
  }
  VITC_DEVICE const T* at(Row row, int k) const {
    int channel = k / (kPatchH * kPatchW), y = k / kPatchW % kPatchH, x = k % kPatchW;
    return data + row.offset + (channel * kHeight + y) * kWidth + x;
  }
  VITC_DEVICE const T* base() const { return data; }
};

}  // namespace vitc::gpu
