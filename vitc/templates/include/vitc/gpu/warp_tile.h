// The part of an output tile that one warp computes, and which lane holds which element of it.
#pragma once

#include "vitc/gpu/mma.h"
#include "vitc/gpu/tile.h"

namespace vitc::gpu {

// kRows x kColumns outputs of a warp as 16x8 tiles. Lane l = 4g + t holds rows g and g + 8 of each
// tile.
//
// An mma gives a lane two neighbouring columns. Which row of B stands behind a column is ours to
// choose, so kGroup tiles share kGroup * 8 columns in such a way that a lane's columns of the group
// are neighbours: column 2t + e of tile j stands for column kVector * t + 2j + e. The epilogue then
// reads and writes kVector columns at once (16 bytes of halves), with no exchange between lanes.
template <class Policy, int kRows, int kColumns>
struct WarpTile {
  static constexpr int kTilesM = kRows / 16, kTilesN = kColumns / 8;
  static constexpr int kGroup = kTilesN % 4 == 0 ? 4 : 2, kGroups = kTilesN / kGroup;
  static constexpr int kVector = 2 * kGroup;
  static_assert(kRows % 16 == 0 && kColumns % 16 == 0, "a warp computes whole pairs of 16x8 tiles");

  float sum[kTilesM][kTilesN][4];

  VITC_DEVICE void clear() {
    VITC_UNROLL
    for (int i = 0; i < kTilesM; ++i) {
      VITC_UNROLL
      for (int j = 0; j < kTilesN; ++j) {
        VITC_UNROLL
        for (int e = 0; e < 4; ++e) sum[i][j][e] = 0;
      }
    }
  }

  // The column of the warp's part that row `i` (0..7) of B's tile `tile` is.
  static VITC_DEVICE int column(int tile, int i) {
    return tile / kGroup * kGroup * 8 + i / 2 * kVector + tile % kGroup * 2 + i % 2;
  }

  // Row of element (tile i, upper or lower half) and first of the kVector columns of a group.
  static VITC_DEVICE int row(int i, int half) { return i * 16 + half * 8 + lane() / 4; }
  static VITC_DEVICE int first_column(int group) {
    return group * kGroup * 8 + lane() % 4 * kVector;
  }
  VITC_DEVICE void get(float (&v)[kVector], int i, int half, int group) const {
    VITC_UNROLL
    for (int c = 0; c < kVector; ++c) v[c] = sum[i][group * kGroup + c / 2][half * 2 + c % 2];
  }

  // Adds the product over two chunks of k. `a` and `b` are tiles in shared memory; this warp's part
  // begins at rows first_a and first_b.
  template <class LayoutA, class LayoutB>
  VITC_DEVICE void multiply(const char* a, const char* b, int first_a, int first_b, int chunk) {
    if constexpr (Policy::kTensorCore) {
      multiply_tensor<LayoutA, LayoutB>(a, b, first_a, first_b, chunk);
    } else {
      multiply_simt<LayoutA, LayoutB>(a, b, first_a, first_b, chunk);
      multiply_simt<LayoutA, LayoutB>(a, b, first_a, first_b, chunk + 1);
    }
  }

 private:
  template <class LayoutA, class LayoutB>
  VITC_DEVICE void multiply_tensor(const char* a, const char* b, int first_a, int first_b,
                                   int chunk) {
    // Tiles of B whose fragments are held at once: those of Tf32x3 would not all fit the registers.
    constexpr int kAtOnce = sizeof(typename Policy::B) > 8 ? 2 : kTilesN;
    typename Policy::A fragment_a[kTilesM];
    const int l = lane();
    VITC_UNROLL
    for (int i = 0; i < kTilesM;
         ++i) {  // matrices: rows 0-7, 8-15, then the same of the second chunk
      uint32_t r[4];
      ldmatrix_x4(r, a + LayoutA::offset(first_a + i * 16 + l % 16, chunk + l / 16));
      fragment_a[i] = Policy::make_a(r);
    }
    VITC_UNROLL
    for (int first = 0; first < kTilesN; first += kAtOnce) {
      typename Policy::B fragment_b[kAtOnce];
      VITC_UNROLL
      for (int j = 0; j < kAtOnce; j += 2) {  // matrices: both chunks of tile j, then of tile j + 1
        const int row = first_b + column(first + j + l / 16, l % 8);
        uint32_t r[4];
        ldmatrix_x4(r, b + LayoutB::offset(row, chunk + l / 8 % 2));
        fragment_b[j] = Policy::make_b(r[0], r[1]);
        fragment_b[j + 1] = Policy::make_b(r[2], r[3]);
      }
      VITC_UNROLL
      for (int i = 0; i < kTilesM; ++i) {
        VITC_UNROLL
        for (int j = 0; j < kAtOnce; ++j) {
          Policy::multiply(sum[i][first + j], fragment_a[i], fragment_b[j]);
        }
      }
    }
  }

  // One chunk of four floats; each lane multiplies what it holds.
  template <class LayoutA, class LayoutB>
  VITC_DEVICE void multiply_simt(const char* a, const char* b, int first_a, int first_b,
                                 int chunk) {
    float va[kTilesM][2][4];
    VITC_UNROLL
    for (int i = 0; i < kTilesM; ++i) {
      VITC_UNROLL
      for (int half = 0; half < 2; ++half) {
        int offset = LayoutA::offset(first_a + row(i, half), chunk);
        load<4>(va[i][half], reinterpret_cast<const float*>(a + offset));
      }
    }
    VITC_UNROLL
    for (int j = 0; j < kTilesN; ++j) {
      VITC_UNROLL
      for (int e = 0; e < 2; ++e) {
        float vb[4];
        int offset = LayoutB::offset(first_b + column(j, lane() % 4 * 2 + e), chunk);
        load<4>(vb, reinterpret_cast<const float*>(b + offset));
        VITC_UNROLL
        for (int i = 0; i < kTilesM; ++i) {
          VITC_UNROLL
          for (int half = 0; half < 2; ++half) {
            VITC_UNROLL
            for (int k = 0; k < 4; ++k) {
              sum[i][j][half * 2 + e] = fmaf(va[i][half][k], vb[k], sum[i][j][half * 2 + e]);
            }
          }
        }
      }
    }
  }
};

}  // namespace vitc::gpu
