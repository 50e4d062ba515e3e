// Activations. The polynomials come from tests/kernels/cpu/coefficients.py, which says what each
// approximates; tests/kernels/cpu/test_math.py holds the bounds.
#pragma once
#include "vitc/cpu/simd.h"

namespace vitc {
inline namespace VITC_ISA {

template <int kTerms>
VITC_INLINE Vec horner(const float (&c)[kTerms], Vec x) {
  Vec y = splat(c[kTerms - 1]);
#pragma GCC unroll 16
  for (int i = kTerms - 2; i >= 0; --i) y = fma(y, x, splat(c[i]));
  return y;
}

// 2^(n + f) for integer n and |f| <= 0.5, relative error below 2e-7.
VITC_INLINE Vec exp2_parts(Vec n, Vec f) {
  static constexpr float kExp2[] = {1.000000001e+00f, 6.931472057e-01f, 2.402264689e-01f,
                                    5.550328777e-02f, 9.618488959e-03f, 1.339993122e-03f,
                                    1.534581159e-04f};
  return scale_exp2(horner(kExp2, f), n);
}
VITC_INLINE Vec exp2_(Vec x) {
  const Vec n = round(x);
  return exp2_parts(n, x - n);
}
// The product x * log2(e) in two parts: a single rounding would cost |x| * 6e-8 relative.
VITC_INLINE Vec exp_(Vec x) {
  x = min(splat(89.f), max(splat(-104.f), x));
  const Vec log2e = splat(1.44269504f), rest = splat(1.9259630e-8f);
  const Vec n = round(x * log2e);
  return exp2_parts(n, fma(x, rest, fma(x, log2e, -n)));
}

VITC_INLINE Vec identity(Vec x) { return x; }
VITC_INLINE Vec relu(Vec x) { return max(Vec{}, x); }
VITC_INLINE Vec relu6(Vec x) { return min(splat(6.f), max(Vec{}, x)); }
VITC_INLINE Vec sigmoid(Vec x) { return 1.f / (1.f + exp_(-x)); }
VITC_INLINE Vec silu(Vec x) { return x / (1.f + exp_(-x)); }
VITC_INLINE Vec tanh_(Vec x) { return 1.f - 2.f / (1.f + exp_(x + x)); }
VITC_INLINE Vec hardsigmoid(Vec x) {
  return min(splat(1.f), max(Vec{}, fma(x, splat(1.f / 6), splat(0.5f))));
}
VITC_INLINE Vec hardswish(Vec x) { return x * hardsigmoid(x); }

// x * sigmoid(1.702 x)
VITC_INLINE Vec gelu_quick(Vec x) { return x / (1.f + exp_(x * -1.702f)); }

// 0.5 x (1 + tanh(sqrt(2/pi) (x + 0.044715 x^3))), by 0.5 (1 + tanh(u)) = sigmoid(2u)
VITC_INLINE Vec gelu_tanh(Vec x) {
  const Vec u =
      x * fma(x * x, splat(-2.f * 0.7978845608f * 0.044715f), splat(-2.f * 0.7978845608f));
  return x / (1.f + exp_(u));
}

// x phi(x) = max(x, 0) - a phi(-a) with a = |x|: the tail is small everywhere, so the absolute
// error stays below 2e-7, where the usual 0.5 x (1 + erf) cancels for negative x.
VITC_INLINE Vec gelu_erf(Vec x) {
  static constexpr float kTail[] = {1.287776883e-01f,  -1.074323402e-01f, 8.388071119e-02f,
                                    -6.022416924e-02f, 4.613096988e-02f,  -3.698426976e-02f,
                                    -1.328170075e-02f, -3.289886357e-02f, 4.913230857e-02f,
                                    6.983653218e-02f,  3.765679057e-02f};
  constexpr float kRange = 5.6f, kHalfLog2e = 0.72134752f;
  const Vec a = min(splat(kRange), abs(x));
  const Vec gauss = exp2_(a * a * -kHalfLog2e);
  const Vec tail = horner(kTail, fma(a, splat(2 / kRange), splat(-1.f)));
  return fma(-a * gauss, tail, relu(x));
}

// 1 / sqrt(sum / n + eps) of a row whose sum of squares an earlier kernel left in `parts` pieces.
template <int64_t kParts>
VITC_INLINE float rstd(const float* parts, float n, float eps) {
  Vec total = Vec{};
  for_lanes(kParts, [&](int64_t i, auto lanes) { total = total + load(parts + i, lanes); });
  return rsqrt(sum(total) / n + eps);
}
// The same with the pieces in runs of kRun: pieces [k, k + kRun) lie at parts + start(k).
template <int64_t kParts, int64_t kRun, class Map>
VITC_INLINE float rstd(const float* parts, const Map& start, float n, float eps) {
  Vec total = Vec{};
  for (int64_t k = 0; k < kParts; k += kRun) {
    const float* run = parts + start(k);
    for_lanes(kRun, [&](int64_t i, auto lanes) { total = total + load(run + i, lanes); });
  }
  return rsqrt(sum(total) / n + eps);
}

// 1 / sqrt(variance + eps) of a row whose writer left pairs (sum of squares, sum) in kParts floats,
// in runs of kRun: mean(x^2) - mean(x)^2.
template <int64_t kParts, int64_t kRun, class Map>
VITC_INLINE float layer_rstd(const float* parts, const Map& start, float n, float eps) {
  static_assert(kRun % 2 == 0 && kParts % kRun == 0, "whole pairs");
  float squares = 0, sums = 0;
  for (int64_t k = 0; k < kParts; k += kRun) {
    const float* run = parts + start(k);
    for (int64_t i = 0; i < kRun; i += 2) {
      squares += run[i];
      sums += run[i + 1];
    }
  }
  const float mean = sums / n, variance = squares / n - mean * mean;
  return rsqrt((variance > 0 ? variance : 0) + eps);
}
template <int64_t kParts>
VITC_INLINE float layer_rstd(const float* parts, float n, float eps) {
  return layer_rstd<kParts, kParts>(parts, [](int64_t) { return 0; }, n, eps);
}

}  // namespace VITC_ISA
}  // namespace vitc
