// One vector of float per ISA, and the storage types. All arithmetic is float32.
#pragma once
#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#ifndef VITC_ISA
#error "compile with -DVITC_ISA=avx2, avx512 or avx512bf16"
#endif
#define VITC_INLINE __attribute__((always_inline)) inline
#define VITC_PASTE2(a, b) a##_##b
#define VITC_PASTE(a, b) VITC_PASTE2(a, b)
#define VITC_SYMBOL(name) VITC_PASTE(name, VITC_ISA)

namespace vitc {
inline namespace VITC_ISA {

struct bf16 {
  uint16_t bits;
};

#ifdef __AVX512F__
using Vec = __m512;
#else
using Vec = __m256;
#endif
constexpr int kLanes = sizeof(Vec) / sizeof(float);
#ifdef __AVX512BF16__
constexpr bool kBf16Products = true;
#else
constexpr bool kBf16Products = false;
#endif

// Which lanes of a vector hold elements: all, or the first n (1 <= n < kLanes; larger means all).
struct All {};
struct First {
  int n;
};

template <class T>
VITC_INLINE constexpr T min_of(T a, T b) {
  return a < b ? a : b;
}
template <class T>
VITC_INLINE constexpr T max_of(T a, T b) {
  return a < b ? b : a;
}
template <class A, class B>
constexpr bool kSameType = false;
template <class A>
constexpr bool kSameType<A, A> = true;

constexpr int64_t ceil_div(int64_t a, int64_t b) { return (a + b - 1) / b; }
constexpr int64_t round_up(int64_t a, int64_t b) { return ceil_div(a, b) * b; }

// ---- arithmetic that has no operator --------------------------------------------------------
// min and max return b when either is NaN: pass the data second and NaNs reach the output.
#ifdef __AVX512F__
VITC_INLINE Vec splat(float x) { return _mm512_set1_ps(x); }
VITC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm512_fmadd_ps(a, b, c); }
VITC_INLINE Vec min(Vec a, Vec b) { return _mm512_min_ps(a, b); }
VITC_INLINE Vec max(Vec a, Vec b) { return _mm512_max_ps(a, b); }
VITC_INLINE Vec sqrt(Vec a) { return _mm512_sqrt_ps(a); }
VITC_INLINE Vec abs(Vec a) { return _mm512_abs_ps(a); }
VITC_INLINE Vec round(Vec a) { return _mm512_roundscale_ps(a, 8); }
VITC_INLINE Vec scale_exp2(Vec a, Vec n) { return _mm512_scalef_ps(a, n); }  // a * 2^n, n integer
VITC_INLINE float sum(Vec a) { return _mm512_reduce_add_ps(a); }
VITC_INLINE float max_lane(Vec a) { return _mm512_reduce_max_ps(a); }
VITC_INLINE __mmask16 mask_of(First lanes) {
  return lanes.n >= 16 ? __mmask16(-1) : __mmask16((1u << lanes.n) - 1);
}
VITC_INLINE Vec select(Vec a, Vec otherwise, First lanes) {
  return _mm512_mask_blend_ps(mask_of(lanes), otherwise, a);
}
// x where a and b differ, else 0.
VITC_INLINE Vec where_differ(Vec a, Vec b, float x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a, b, _CMP_NEQ_UQ), splat(x));
}
#else
VITC_INLINE Vec splat(float x) { return _mm256_set1_ps(x); }
VITC_INLINE Vec fma(Vec a, Vec b, Vec c) { return _mm256_fmadd_ps(a, b, c); }
VITC_INLINE Vec min(Vec a, Vec b) { return _mm256_min_ps(a, b); }
VITC_INLINE Vec max(Vec a, Vec b) { return _mm256_max_ps(a, b); }
VITC_INLINE Vec sqrt(Vec a) { return _mm256_sqrt_ps(a); }
VITC_INLINE Vec abs(Vec a) { return _mm256_andnot_ps(_mm256_set1_ps(-0.f), a); }
VITC_INLINE Vec round(Vec a) { return _mm256_round_ps(a, 8); }
VITC_INLINE Vec scale_exp2(Vec a, Vec n) {
  // In two steps of half the exponent, so that results down to the denormals come out.
  const __m256i whole = _mm256_cvtps_epi32(min(splat(254.f), max(splat(-252.f), n)));
  const __m256i half = _mm256_srai_epi32(whole, 1), rest = _mm256_sub_epi32(whole, half);
  const __m256i bias = _mm256_set1_epi32(127);
  a = a * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(half, bias), 23));
  return a * _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_add_epi32(rest, bias), 23));
}
VITC_INLINE float sum(Vec a) {
  __m128 x = _mm_add_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_add_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_add_ss(x, _mm_movehdup_ps(x)));
}
VITC_INLINE float max_lane(Vec a) {
  __m128 x = _mm_max_ps(_mm256_castps256_ps128(a), _mm256_extractf128_ps(a, 1));
  x = _mm_max_ps(x, _mm_movehl_ps(x, x));
  return _mm_cvtss_f32(_mm_max_ss(x, _mm_movehdup_ps(x)));
}
VITC_INLINE __m256i mask_of(First lanes) {
  return _mm256_cmpgt_epi32(_mm256_set1_epi32(lanes.n), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}
VITC_INLINE Vec select(Vec a, Vec otherwise, First lanes) {
  return _mm256_blendv_ps(otherwise, a, _mm256_castsi256_ps(mask_of(lanes)));
}
VITC_INLINE Vec where_differ(Vec a, Vec b, float x) {
  return _mm256_and_ps(_mm256_cmp_ps(a, b, _CMP_NEQ_UQ), splat(x));
}
#endif
VITC_INLINE Vec select(Vec a, Vec, All) { return a; }
VITC_INLINE Vec splat(Vec x) { return x; }
VITC_INLINE float rsqrt(float x) { return 1.f / _mm_cvtss_f32(_mm_sqrt_ss(_mm_set_ss(x))); }

// ---- bf16, round to nearest even ------------------------------------------------------------
VITC_INLINE float to_float(float x) { return x; }
VITC_INLINE float to_float(bf16 x) {
  const uint32_t bits = uint32_t{x.bits} << 16;
  float f;
  memcpy(&f, &bits, sizeof(f));
  return f;
}
VITC_INLINE void from_float(float x, float* dst) { *dst = x; }
VITC_INLINE void from_float(float x, bf16* dst) {
  uint32_t bits;
  memcpy(&bits, &x, sizeof(bits));
  if ((bits & 0x7fffffffu) > 0x7f800000u)
    dst->bits = uint16_t(bits >> 16 | 0x40);  // rounding up could turn a NaN into an infinity
  else
    dst->bits = uint16_t((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

#ifdef __AVX512F__
using HalfVec = __m256i;  // kLanes bf16
VITC_INLINE Vec widen(HalfVec x) {
  return _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(x), 16));
}
VITC_INLINE HalfVec narrow(Vec x) {
#ifdef __AVX512BF16__
  return (__m256i)_mm512_cvtneps_pbh(x);
#else
  const __m512i bits = _mm512_castps_si512(x), top = _mm512_srli_epi32(bits, 16);
  const __m512i odd = _mm512_and_si512(top, _mm512_set1_epi32(1));
  const __m512i up = _mm512_add_epi32(_mm512_add_epi32(bits, odd), _mm512_set1_epi32(0x7fff));
  const __mmask16 nan = _mm512_cmp_ps_mask(x, x, _CMP_UNORD_Q);
  return _mm512_cvtepi32_epi16(
      _mm512_mask_or_epi32(_mm512_srli_epi32(up, 16), nan, top, _mm512_set1_epi32(0x40)));
#endif
}
#else
using HalfVec = __m128i;
VITC_INLINE Vec widen(HalfVec x) {
  return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(x), 16));
}
VITC_INLINE HalfVec narrow(Vec x) {
  const __m256i bits = _mm256_castps_si256(x), top = _mm256_srli_epi32(bits, 16);
  const __m256i odd = _mm256_and_si256(top, _mm256_set1_epi32(1));
  const __m256i up = _mm256_add_epi32(_mm256_add_epi32(bits, odd), _mm256_set1_epi32(0x7fff));
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(x, x, _CMP_UNORD_Q));
  const __m256i words = _mm256_blendv_epi8(_mm256_srli_epi32(up, 16),
                                           _mm256_or_si256(top, _mm256_set1_epi32(0x40)), nan);
  const __m256i packed = _mm256_packus_epi32(words, words);
  return _mm256_castsi256_si128(_mm256_permute4x64_epi64(packed, 0x08));
}
#endif

// ---- memory ---------------------------------------------------------------------------------
// Unused lanes load as 0. store returns what a later load would see, with 0 in unused lanes.
VITC_INLINE HalfVec load_bits(const bf16* p) {
  HalfVec x;
  memcpy(&x, p, sizeof(x));
  return x;
}
VITC_INLINE Vec load(const float* p, All = {}) {
  Vec x;
  memcpy(&x, p, sizeof(x));
  return x;
}
VITC_INLINE Vec load(const bf16* p, All = {}) { return widen(load_bits(p)); }
VITC_INLINE Vec store(float* p, Vec x, All = {}) {
  memcpy(p, &x, sizeof(x));
  return x;
}
VITC_INLINE Vec store(bf16* p, Vec x, All = {}) {
  const HalfVec h = narrow(x);
  memcpy(p, &h, sizeof(h));
  return widen(h);
}
#ifdef __AVX512F__
VITC_INLINE Vec load(const float* p, First lanes) {
  return _mm512_maskz_loadu_ps(mask_of(lanes), p);
}
VITC_INLINE Vec load(const bf16* p, First lanes) {
  return widen(_mm256_maskz_loadu_epi16(mask_of(lanes), p));
}
VITC_INLINE Vec store(float* p, Vec x, First lanes) {
  _mm512_mask_storeu_ps(p, mask_of(lanes), x);
  return _mm512_maskz_mov_ps(mask_of(lanes), x);
}
VITC_INLINE Vec store(bf16* p, Vec x, First lanes) {
  const HalfVec h = narrow(x);
  _mm256_mask_storeu_epi16(p, mask_of(lanes), h);
  return _mm512_maskz_mov_ps(mask_of(lanes), widen(h));
}
#else
VITC_INLINE Vec load(const float* p, First lanes) { return _mm256_maskload_ps(p, mask_of(lanes)); }
VITC_INLINE Vec load(const bf16* p, First lanes) {
  bf16 padded[kLanes] = {};
  for (int i = 0; i < min_of(lanes.n, kLanes); ++i) padded[i] = p[i];
  return load(padded);
}
VITC_INLINE Vec store(float* p, Vec x, First lanes) {
  _mm256_maskstore_ps(p, mask_of(lanes), x);
  return _mm256_and_ps(x, _mm256_castsi256_ps(mask_of(lanes)));
}
VITC_INLINE Vec store(bf16* p, Vec x, First lanes) {
  bf16 padded[kLanes];
  const Vec stored = store(padded, x);
  for (int i = 0; i < min_of(lanes.n, kLanes); ++i) p[i] = padded[i];
  return _mm256_and_ps(stored, _mm256_castsi256_ps(mask_of(lanes)));
}
#endif

// body(n, lanes) for the vectors of n in [0, count); at most the last one is partial.
template <class Body>
VITC_INLINE void for_lanes(int64_t count, const Body& body) {
  int64_t n = 0;
  for (; n + kLanes <= count; n += kLanes) body(n, All{});
  if (n < count) body(n, First{int(count - n)});
}

// n elements, converting the type.
template <class To, class From>
VITC_INLINE void copy(To* dst, const From* src, int64_t n) {
  for_lanes(n, [&](int64_t i, auto lanes) { store(dst + i, load(src + i, lanes), lanes); });
}
VITC_INLINE void copy(bf16* dst, const bf16* src, int64_t n) {
  memcpy(dst, src, size_t(n) * sizeof(bf16));
}

template <class T>
VITC_INLINE void fill_zero(T* dst, int64_t n) {
  memset(dst, 0, size_t(n) * sizeof(T));
}

}  // namespace VITC_ISA
}  // namespace vitc
