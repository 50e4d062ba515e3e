// Packing float panels at run time, for operands that are activations: attention's K and V,
// matmul's right-hand side. The layout is that of packed weights (tile.h); unused columns are zero.
#pragma once
#include "vitc/cpu/tile.h"

namespace vitc {
inline namespace VITC_ISA {

VITC_INLINE __m128 load4(const float* p) { return _mm_loadu_ps(p); }
VITC_INLINE __m128 load4(const bf16* p) {
  const __m128i x = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(p));
  return _mm_castsi128_ps(_mm_slli_epi32(_mm_cvtepu16_epi32(x), 16));
}

// row(n), kK elements, becomes column n of the panels.
template <int64_t kK, class Rows>
void pack_transposed(const Rows& row, int64_t columns, float* panels) {
  for (int64_t first = 0; first < columns; first += kPanel, panels += kK * kPanel) {
    const int64_t count = min_of<int64_t>(kPanel, columns - first);
    if (count < kPanel) fill_zero(panels, kK * kPanel);
    const int64_t fours = count / 4 * 4;
    for (int64_t n = 0; n < fours; n += 4) {
      const auto* r0 = row(first + n);
      const auto* r1 = row(first + n + 1);
      const auto* r2 = row(first + n + 2);
      const auto* r3 = row(first + n + 3);
      int64_t k = 0;
      for (; k + 4 <= kK; k += 4) {
        __m128 a = load4(r0 + k), b = load4(r1 + k), c = load4(r2 + k), d = load4(r3 + k);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        float* dst = panels + k * kPanel + n;
        _mm_storeu_ps(dst, a);
        _mm_storeu_ps(dst + kPanel, b);
        _mm_storeu_ps(dst + 2 * kPanel, c);
        _mm_storeu_ps(dst + 3 * kPanel, d);
      }
      for (; k < kK; ++k) {
        float* dst = panels + k * kPanel + n;
        dst[0] = to_float(r0[k]), dst[1] = to_float(r1[k]);
        dst[2] = to_float(r2[k]), dst[3] = to_float(r3[k]);
      }
    }
    for (int64_t n = fours; n < count; ++n) {
      const auto* last = row(first + n);
      for (int64_t k = 0; k < kK; ++k) panels[k * kPanel + n] = to_float(last[k]);
    }
  }
}

// row(k), kN elements, becomes row k of the panels.
template <int64_t kN, class Rows>
void pack_straight(const Rows& row, int64_t rows, float* panels) {
  for (int64_t n = 0; n < kN; n += kPanel, panels += rows * kPanel) {
    const int64_t count = min_of<int64_t>(kPanel, kN - n);
    for (int64_t k = 0; k < rows; ++k) {
      if (count < kPanel) fill_zero(panels + k * kPanel, kPanel);
      copy(panels + k * kPanel, row(k) + n, count);
    }
  }
}

}  // namespace VITC_ISA
}  // namespace vitc
