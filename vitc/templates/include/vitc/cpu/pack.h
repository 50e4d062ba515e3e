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

// Row n of src (kK elements, rows `stride` apart) becomes column n of the panels.
template <int64_t kK, class T>
void pack_transposed(const T* src, int64_t stride, int64_t columns, float* panels) {
  for (int64_t first = 0; first < columns; first += kPanel, panels += kK * kPanel) {
    const int64_t count = min_of<int64_t>(kPanel, columns - first);
    if (count < kPanel) fill_zero(panels, kK * kPanel);
    int64_t n = 0;
    for (; n + 4 <= count; n += 4) {
      const T* row = src + (first + n) * stride;
      int64_t k = 0;
      for (; k + 4 <= kK; k += 4) {
        __m128 a = load4(row + k), b = load4(row + stride + k);
        __m128 c = load4(row + 2 * stride + k), d = load4(row + 3 * stride + k);
        _MM_TRANSPOSE4_PS(a, b, c, d);
        float* dst = panels + k * kPanel + n;
        _mm_storeu_ps(dst, a);
        _mm_storeu_ps(dst + kPanel, b);
        _mm_storeu_ps(dst + 2 * kPanel, c);
        _mm_storeu_ps(dst + 3 * kPanel, d);
      }
      for (; k < kK; ++k)
        for (int i = 0; i < 4; ++i) panels[k * kPanel + n + i] = to_float(row[i * stride + k]);
    }
    for (; n < count; ++n)
      for (int64_t k = 0; k < kK; ++k)
        panels[k * kPanel + n] = to_float(src[(first + n) * stride + k]);
  }
}

// Row k of src (kN elements) becomes row k of the panels.
template <int64_t kN, class T>
void pack_straight(const T* src, int64_t stride, int64_t rows, float* panels) {
  for (int64_t n = 0; n < kN; n += kPanel, panels += rows * kPanel) {
    const int64_t count = min_of<int64_t>(kPanel, kN - n);
    for (int64_t k = 0; k < rows; ++k) {
      if (count < kPanel) fill_zero(panels + k * kPanel, kPanel);
      copy(panels + k * kPanel, src + k * stride + n, count);
    }
  }
}

}  // namespace VITC_ISA
}  // namespace vitc
