// The micro-kernel: kRows rows of A times one 32-column panel of packed weights, all of K at once,
// so that the accumulators never leave the registers before the epilogue.
#pragma once
#include "vitc/cpu/simd.h"

namespace vitc {
inline namespace VITC_ISA {

constexpr int kPanel = 32;  // columns of a packed panel, the same for every ISA

// Rows of the main tile: 2 vectors of columns each, and room for the panel's vectors and a
// broadcast in 32 (AVX-512) or 16 registers. 12 rows need 14 loads per 24 FMAs: the FMA units are
// the limit.
constexpr int kTileRows = kLanes == 16 ? 12 : 6;
constexpr int kSmallRows = kTileRows / 2;  // for the last rows, padded with zero rows

// Elements between packed rows: an odd number of cache lines, so that the rows of a tile, which are
// read side by side, fall into different sets of L1.
constexpr int64_t packed_stride(int64_t elements, int64_t size) {
  return ((elements * size + 63) / 64 | 1) * 64 / size;
}

// How a panel of weights type W meets A. Operand: what A is stored as where the tile reads it.
// kStep: values of k per 32-column step of the panel.
template <class W>
struct Product;

template <>
struct Product<float> {
  using Operand = float;
  static constexpr int kStep = 1;
  template <int kRows, int64_t kStride>
  static VITC_INLINE void step(const float* a, const float* b, Vec (&acc)[kRows][2]) {
    const Vec b0 = load(b), b1 = load(b + kLanes);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = splat(a[r * kStride]);
      acc[r][0] = fma(x, b0, acc[r][0]);
      acc[r][1] = fma(x, b1, acc[r][1]);
    }
  }
};

#ifdef __AVX512BF16__
template <>
struct Product<bf16> {
  using Operand = bf16;
  static constexpr int kStep = 2;
  template <int kRows, int64_t kStride>
  static VITC_INLINE void step(const bf16* a, const bf16* b, Vec (&acc)[kRows][2]) {
    __m512bh b0, b1;
    memcpy(&b0, b, 64);
    memcpy(&b1, b + 32, 64);
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      int pair;
      memcpy(&pair, a + r * kStride, sizeof(pair));
      const __m512bh x = (__m512bh)_mm512_set1_epi32(pair);
      acc[r][0] = _mm512_dpbf16_ps(acc[r][0], x, b0);
      acc[r][1] = _mm512_dpbf16_ps(acc[r][1], x, b1);
    }
  }
};
#else
// Without bf16 instructions A is widened when it is packed, and each pair of weights here.
template <>
struct Product<bf16> {
  using Operand = float;
  static constexpr int kStep = 2;
  static VITC_INLINE Vec bits(const bf16* p) { return load(reinterpret_cast<const float*>(p)); }
#ifdef __AVX512F__
  static VITC_INLINE Vec even(Vec x) {
    return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(x), 16));
  }
  static VITC_INLINE Vec odd(Vec x) {
    const __m512i high = _mm512_set1_epi32(int(0xffff0000u));
    return _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(x), high));
  }
#else
  static VITC_INLINE Vec even(Vec x) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(x), 16));
  }
  static VITC_INLINE Vec odd(Vec x) {
    return _mm256_and_ps(x, _mm256_castsi256_ps(_mm256_set1_epi32(int(0xffff0000u))));
  }
#endif
  template <int kRows, int64_t kStride>
  static VITC_INLINE void step(const float* a, const bf16* b, Vec (&acc)[kRows][2]) {
    Vec b0 = even(bits(b)), b1 = even(bits(b + 2 * kLanes));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = splat(a[r * kStride]);
      acc[r][0] = fma(x, b0, acc[r][0]);
      acc[r][1] = fma(x, b1, acc[r][1]);
    }
    // Loaded again: keeping both halves of the pair alive would spill on AVX2.
    const bf16* again = b;
    asm("" : "+r"(again));
    b0 = odd(bits(again)), b1 = odd(bits(again + 2 * kLanes));
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      const Vec x = splat(a[r * kStride + 1]);
      acc[r][0] = fma(x, b0, acc[r][0]);
      acc[r][1] = fma(x, b1, acc[r][1]);
    }
  }
};
#endif

// What the tile brings into L2 while the FMAs run: `bytes` per step from `from` on.
struct Fetch {
  const char* from;
  int64_t bytes;
};

// Nothing to bring in. Still a valid address: prefetching an unmapped one walks the page table.
VITC_INLINE Fetch resident(const void* panel) { return {static_cast<const char*>(panel), 0}; }

// tile = A * panel, kRows x 32, rows of the tile kOut apart. a: rows kStride apart; steps: ceil(K /
// kStep), the k beyond K being zero in the panel and finite in A.
template <class W, int kRows, int64_t kStride, int64_t kOut = kPanel>
[[gnu::noinline]] void multiply_tile(const typename Product<W>::Operand* a, const W* panel,
                                     int64_t steps, float* tile, Fetch fetch) {
  using P = Product<W>;
  constexpr int kHalves = kPanel / (2 * kLanes);
  const char* next = fetch.from;
  const int64_t advance = fetch.bytes / kHalves;
  for (int half = 0; half < kHalves; ++half) {
    Vec acc[kRows][2];
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) acc[r][0] = acc[r][1] = Vec{};
    const W* b = panel + half * 2 * kLanes * P::kStep;
    for (int64_t s = 0; s < steps; ++s) {
      _mm_prefetch(next, _MM_HINT_T1);
      _mm_prefetch(next + 64, _MM_HINT_T1);
      P::template step<kRows, kStride>(a + s * P::kStep, b, acc);
      b += kPanel * P::kStep;
      next += advance;
    }
#pragma GCC unroll 16
    for (int r = 0; r < kRows; ++r) {
      store(tile + r * kOut + half * 2 * kLanes, acc[r][0]);
      store(tile + r * kOut + half * 2 * kLanes + kLanes, acc[r][1]);
    }
  }
}

// Rows that a tile of `rows` rows (1..kTileRows) computes: A must be readable, and finite, up to
// it.
VITC_INLINE constexpr int64_t padded_rows(int64_t rows) {
  return rows <= 1 ? rows : rows <= kSmallRows ? kSmallRows : kTileRows;
}

// The same for a number of rows known at run time.
template <class W, int64_t kStride, int64_t kOut = kPanel>
VITC_INLINE void multiply_rows(int64_t rows, const typename Product<W>::Operand* a, const W* panel,
                               int64_t steps, float* tile, Fetch fetch) {
  if (rows > kSmallRows)
    multiply_tile<W, kTileRows, kStride, kOut>(a, panel, steps, tile, fetch);
  else if (rows > 1)
    multiply_tile<W, kSmallRows, kStride, kOut>(a, panel, steps, tile, fetch);
  else
    multiply_tile<W, 1, kStride, kOut>(a, panel, steps, tile, fetch);
}

}  // namespace VITC_ISA
}  // namespace vitc
