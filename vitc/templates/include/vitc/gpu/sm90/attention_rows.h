// The softmax of Hopper's attention in registers: scores in, weights and scaled sums out.
#pragma once

#include "vitc/gpu/sm90/attention_tile.h"

namespace vitc::gpu::sm90 {

// A warpgroup's 64 query rows. A thread has rows g and g + 8 of its warp's 16; of a product, the
// elements that wgmma.h says.
template <class Tile>
struct QueryRows {
  using T = typename Tile::T;
  float out[Tile::kColumns / 2], top[2], sum[2];  // top: the largest score so far, scaled

  VITC_DEVICE void clear() {
    VITC_UNROLL
    for (float& o : out) o = 0;
    VITC_UNROLL
    for (int h = 0; h < 2; ++h) top[h] = -INFINITY, sum[h] = 0;
  }

  // The maximum with a block's kKeys scores; what is there of the blocks before is rescaled to it.
  template <int kKeys, int kCount>
  VITC_DEVICE void raise(const float (&s)[kCount], float scale_log2, bool first_block) {
    VITC_UNROLL
    for (int h = 0; h < 2; ++h) {
      float some[2] = {-INFINITY, -INFINITY};  // two chains of fmaxf, which is one instruction
      VITC_UNROLL
      for (int j = 0; j < divide_up(kKeys, 8); ++j) {
        VITC_UNROLL
        for (int e = 0; e < 2; ++e) {
          const bool inside = j * 8 + 8 <= kKeys || j * 8 + lane() % 4 * 2 + e < kKeys;
          some[e] = fmaxf(some[e], inside ? s[4 * j + 2 * h + e] : -INFINITY);
        }
      }
      const float largest = fmaxf(top[h], warp_max<4>(fmaxf(some[0], some[1])) * scale_log2);
      if (!first_block) {
        const float kept = fast_exp2(top[h] - largest);
        sum[h] *= kept;
        VITC_UNROLL
        for (int i = 0; i < Tile::kColumns / 2; i += 4) {
          out[i + 2 * h] *= kept;
          out[i + 2 * h + 1] *= kept;
        }
      }
      top[h] = largest;
    }
  }

  // Keys [16 step, 16 step + 16) of kKeys as an operand: exp2(score - top), rounded.
  template <int kKeys, int kCount>
  VITC_DEVICE void weights(uint32_t (&a)[4], const float (&s)[kCount], int step, float scale_log2) {
    VITC_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int j = 2 * step + i;
      VITC_UNROLL
      for (int h = 0; h < 2; ++h) {
        float p[2];
        VITC_UNROLL
        for (int e = 0; e < 2; ++e) {
          const bool inside = j * 8 + 8 <= kKeys || j * 8 + lane() % 4 * 2 + e < kKeys;
          p[e] = inside ? fast_exp2(fmaf(s[4 * j + 2 * h + e], scale_log2, -top[h])) : 0.f;
        }
        sum[h] += p[0] + p[1];
        a[2 * i + h] = pack<T>(p[0], p[1]);
      }
    }
  }

  // Four lanes that share a row trade their pairs of columns: each then has 16 bytes of one chunk.
  static VITC_DEVICE void trade(uint32_t (&x)[4]) {
    const bool odd = lane() % 2 != 0, upper = lane() / 2 % 2 != 0;
    const uint32_t r0 = shuffle_xor(upper ? x[0] : x[2], 2),
                   r1 = shuffle_xor(upper ? x[1] : x[3], 2);
    const uint32_t low0 = upper ? r0 : x[0], low1 = upper ? r1 : x[1];
    const uint32_t high0 = upper ? x[2] : r0, high1 = upper ? x[3] : r1;
    const uint32_t low = shuffle_xor(odd ? low0 : low1, 1),
                   high = shuffle_xor(odd ? high0 : high1, 1);
    x[0] = odd ? low : low0;
    x[1] = odd ? low1 : low;
    x[2] = odd ? high : high0;
    x[3] = odd ? high1 : high;
  }

  // Rows of the tile of one head that are there.
  template <class Output>
  VITC_DEVICE void write_out(int batch, int head, int tile, const Output& output) {
    const float inverse[2] = {fast_divide(1.f, warp_sum<4>(sum[0])),
                              fast_divide(1.f, warp_sum<4>(sum[1]))};
    VITC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const int row = tile * Tile::kRows + thread() % kWarpgroup / kWarp * 16 + h * 8 + lane() / 4;
      // The lane's own first: from a row's start, nvcc 13 makes four stores of the first 16 bytes.
      T* to = output.row(batch, head, row) + lane() % 4 * 8;
      VITC_UNROLL
      for (int j = 0; j < Tile::kColumns / 8; j += 4) {
        uint32_t x[4] = {};
        VITC_UNROLL
        for (int i = 0; i < 4 && j + i < Tile::kColumns / 8; ++i) {
          const float* o = out + 4 * (j + i) + 2 * h;
          x[i] = pack<T>(o[0] * inverse[h], o[1] * inverse[h]);
        }
        trade(x);
        const int column = (j + lane() % 4) * 8;
        if (row < Tile::kQueries && column < Tile::kHeadDim) {
          store<4>(reinterpret_cast<uint32_t*>(to + j * 8), x);
        }
      }
    }
  }
};

}  // namespace vitc::gpu::sm90
