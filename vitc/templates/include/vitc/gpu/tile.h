// A matrix tile in shared memory that ldmatrix reads and 16-byte copies write without bank
// conflicts.
#pragma once

#include "vitc/gpu/device.h"

namespace vitc::gpu {

// Rows of kRowBytes, cut into 16-byte chunks; chunk c of row r is stored at place c ^ key(r).
// Shared memory is 8 chunks wide, and one ldmatrix matrix reads the same chunk of 8 rows, so the
// key has to spread these over the width: by their number i = 0..7 as far as the row length does
// not.
//
// kStride says which 8 rows are read together: rows 0..7 for kStride = 2; in general the pairs
// {0, 1}, {s, s + 1}, {2s, 2s + 1}, {3s, 3s + 1}, shifted by an even number below s (see column()
// in warp_tile.h).
template <int kRowBytes_, int kStride = 2>
struct SharedTile {
  static constexpr int kRowBytes = kRowBytes_, kChunks = kRowBytes / 16;
  static constexpr int kSpread = kChunks % 8 == 0   ? 8
                                 : kChunks % 4 == 0 ? 4
                                 : kChunks % 2 == 0 ? 2
                                                    : 1;
  static_assert(kRowBytes % 16 == 0);
  static_assert(kStride == 2 ||
                ((kStride == 4 || kStride == 8) && (kChunks == 4 || kChunks % 8 == 0)));

  static VITC_DEVICE int key(int row) {
    int i = (row & 1) | (row / kStride & 3) << 1;
    return i / (8 / kSpread);
  }
  // Byte offset of a chunk in the tile.
  static VITC_DEVICE int offset(int row, int chunk) {
    return row * kRowBytes + (chunk ^ key(row)) * 16;
  }
};

}  // namespace vitc::gpu
