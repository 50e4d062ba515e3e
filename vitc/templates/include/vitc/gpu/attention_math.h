// The two products of attention for one warp of 16 query rows, in every arithmetic policy. Lane l =
// 4g + t holds rows g and g + 8; of the scores, columns (keys) 2t and 2t + 1 of each 8-key tile; of
// the output, the same columns of each 8-wide tile of the value dimension. Scores never leave the
// registers.
#pragma once

#include "vitc/gpu/mma.h"
#include "vitc/gpu/tile.h"

namespace vitc::gpu {

// ---- scores = Q K^T
// --------------------------------------------------------------------------------------- q: tile
// of query rows, this warp's at first_row; k: tile of key rows, tiles of 8 keys from its begin,
// rows of a whole number of pairs of tiles.
template <class Policy, class Layout, int kTiles>
VITC_DEVICE void query_times_key(float (&scores)[kTiles][4], const char* q, int first_row,
                                 const char* k) {
  const int l = fresh(lane());
  VITC_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    VITC_UNROLL
    for (int e = 0; e < 4; ++e) scores[j][e] = 0;
  }
  if constexpr (Policy::kTensorCore) {
    // Floats take more steps and, split in three products, more registers in each.
    constexpr int kSteps = sizeof(typename Policy::Storage) == 2 ? Layout::kChunks / 2 : 1;
    VITC_UNROLL_BY(kSteps)
    for (int chunk = 0; chunk < Layout::kChunks; chunk += 2) {
      uint32_t r[4];
      ldmatrix_x4(r, q + Layout::offset(first_row + l % 16, chunk + l / 16));
      const auto a = Policy::make_a(r);
      VITC_UNROLL
      for (int j = 0; j < kTiles; j += 2) {  // matrices: both chunks of tile j, then of tile j + 1
        ldmatrix_x4(r, k + Layout::offset((j + l / 16) * 8 + l % 8, chunk + l / 8 % 2));
        Policy::multiply(scores[j], a, Policy::make_b(r[0], r[1]));
        if (j + 1 < kTiles) Policy::multiply(scores[j + 1], a, Policy::make_b(r[2], r[3]));
      }
    }
  } else {
    VITC_NO_UNROLL
    for (int chunk = 0; chunk < Layout::kChunks; ++chunk) {
      float vq[2][4];
      VITC_UNROLL
      for (int half = 0; half < 2; ++half) {
        int offset = Layout::offset(first_row + half * 8 + l / 4, chunk);
        load<4>(vq[half], reinterpret_cast<const float*>(q + offset));
      }
      VITC_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        VITC_UNROLL
        for (int e = 0; e < 2; ++e) {
          float vk[4];
          load<4>(vk,
                  reinterpret_cast<const float*>(k + Layout::offset(j * 8 + l % 4 * 2 + e, chunk)));
          VITC_UNROLL
          for (int half = 0; half < 2; ++half) {
            VITC_UNROLL
            for (int d = 0; d < 4; ++d) {
              scores[j][half * 2 + e] = fmaf(vq[half][d], vk[d], scores[j][half * 2 + e]);
            }
          }
        }
      }
    }
  }
}

// ---- out += P V
// -------------------------------------------------------------------------------------------
// 16-bit storage: an mma's result lies in the lanes just as its next A operand wants it.
template <class Policy, class Layout, int kTiles, int kOut>
VITC_DEVICE void weights_times_value_16(float (&out)[kOut][4], const float (&p)[kTiles][4],
                                        const char* v) {
  using T = typename Policy::Storage;
  const int l = fresh(lane());
  VITC_UNROLL
  for (int j = 0; j < kTiles; j += 2) {
    uint32_t packed[4] = {pack<T>(p[j][0], p[j][1]), pack<T>(p[j][2], p[j][3]), 0, 0};
    if (j + 1 < kTiles) {
      packed[2] = pack<T>(p[j + 1][0], p[j + 1][1]);
      packed[3] = pack<T>(p[j + 1][2], p[j + 1][3]);
    }
    const auto a = Policy::make_a(packed);
    VITC_UNROLL
    for (int n = 0; n < kOut; n += 2) {  // matrices: 16 keys of value tile n, then of tile n + 1
      uint32_t r[4];
      ldmatrix_x4_trans(r, v + Layout::offset(j * 8 + l % 16, n + l / 16));
      Policy::multiply(out[n], a, Policy::make_b(r[0], r[1]));
      Policy::multiply(out[n + 1], a, Policy::make_b(r[2], r[3]));
    }
  }
}

// Float storage on tensor cores: the A operand wants keys t and t + 4 where the scores' lane has 2t
// and 2t + 1. The order of keys in a sum is free, so V's rows are taken in the scores' order.
template <class Policy, class Layout, int kTiles, int kOut>
VITC_DEVICE void weights_times_value_32(float (&out)[kOut][4], const float (&p)[kTiles][4],
                                        const char* v) {
  const int l = fresh(lane()), g = l / 4, t = l % 4;
  VITC_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    const uint32_t bits[4] = {bits_of(p[j][0]), bits_of(p[j][2]), bits_of(p[j][1]),
                              bits_of(p[j][3])};
    const auto a = Policy::make_a(bits);
    VITC_UNROLL
    for (int n = 0; n < kOut; ++n) {
      const int column = n * 8 + g, key = j * 8 + 2 * t;
      uint32_t b[2];
      VITC_UNROLL
      for (int e = 0; e < 2; ++e) {
        b[e] = bits_of(*reinterpret_cast<const float*>(v + Layout::offset(key + e, column / 4) +
                                                       column % 4 * 4));
      }
      Policy::multiply(out[n], a, Policy::make_b(b[0], b[1]));
    }
  }
}

// Without tensor cores: the weights of a row lie in four lanes, which tell each other.
template <class Layout, int kTiles, int kOut>
VITC_DEVICE void weights_times_value_simt(float (&out)[kOut][4], const float (&p)[kTiles][4],
                                          const char* v) {
  const int l = fresh(lane());
  VITC_UNROLL
  for (int j = 0; j < kTiles; ++j) {
    VITC_UNROLL
    for (int key = 0; key < 8; ++key) {
      const float upper = shuffle(p[j][key % 2], key / 2, 4),
                  lower = shuffle(p[j][2 + key % 2], key / 2, 4);
      VITC_UNROLL
      for (int n = 0; n < kOut; ++n) {
        const int column = n * 8 + l % 4 * 2;
        float two[2];
        int offset = Layout::offset(j * 8 + key, column / 4) + column % 4 * 4;
        load<2>(two, reinterpret_cast<const float*>(v + offset));
        VITC_UNROLL
        for (int e = 0; e < 2; ++e) {
          out[n][e] = fmaf(upper, two[e], out[n][e]);
          out[n][2 + e] = fmaf(lower, two[e], out[n][2 + e]);
        }
      }
    }
  }
}

template <class Policy, class Layout, int kTiles, int kOut>
VITC_DEVICE void weights_times_value(float (&out)[kOut][4], const float (&p)[kTiles][4],
                                     const char* v) {
  if constexpr (!Policy::kTensorCore) {
    weights_times_value_simt<Layout>(out, p, v);
  } else if constexpr (sizeof(typename Policy::Storage) == 2) {
    weights_times_value_16<Policy, Layout>(out, p, v);
  } else {
    weights_times_value_32<Policy, Layout>(out, p, v);
  }
}

}  // namespace vitc::gpu
