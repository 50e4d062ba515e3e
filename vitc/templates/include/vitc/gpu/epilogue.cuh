// What an epilogue functor is made of: steps over kVector neighbouring columns of one output row,
// in float. A generated functor calls them in the order of the IR's epilogue and ends with write().
//
//   struct Epilogue {
//     static constexpr bool kRowScale, kSumSquares;
//     float row_scale(int row) const;                    // if kRowScale: once per row and block
//     template <int V> void operator()(int row, int column, float (&v)[V], float row_scale) const;
//     void sum_squares(int row, int slice, float sum) const;   // if kSumSquares
//   };
//
// V is the vector width, or 1 where N is no multiple of it; columns [column, column + V) are
// inside. sum_squares receives, per column slice (a warp's part of the tile, Tile::kSlice columns),
// the sum over what v holds after the call. Deriving from NoRowTerms leaves both out.
#pragma once

#include "vitc/gpu/device.h"

namespace vitc::gpu {

struct NoRowTerms {
  static constexpr bool kRowScale = false, kSumSquares = false;
  VITC_DEVICE float row_scale(int) const { return 1; }
  VITC_DEVICE void sum_squares(int, int, float) const {}
};

// ---- activations: float -> float
// -------------------------------------------------------------------------
struct Relu {
  static VITC_DEVICE float apply(float x) { return maximum(x, 0.f); }
};
struct GeluErf {  // x Phi(x)
  static VITC_DEVICE float apply(float x) {
    return 0.5f * x * (1.f + erff(x * 0.70710678118654752f));
  }
};
// The same for 16-bit results: gelu(x) = max(x, 0) - |x| Phi(-|x|), log2(Phi(-a)) by a polynomial
// of degree 5 fitted for relative error (0.17 ulp of half, tail included): a third of erff's cost.
struct GeluErfHalf {
  static VITC_DEVICE float apply(float x) {
    float a = fabsf(x);
    float p = fmaf(a, -0.000320508046f, 0.00582725973f);
    p = fmaf(p, a, -0.0482371671f);
    p = fmaf(p, a, -0.464121019f);
    p = fmaf(p, a, -1.14917578f);
    p = fmaf(p, a, -1.0001208f);
    return fmaf(-a, fast_exp2(p), fmaxf(x, 0.f));
  }
};
struct GeluTanh {
  static VITC_DEVICE float apply(float x) {
    return 0.5f * x * (1.f + tanhf(0.79788456080286536f * fmaf(0.044715f * x * x, x, x)));
  }
};
struct GeluTanhHalf {  // by the hardware's tanh, 2^-11
  static VITC_DEVICE float apply(float x) {
    return 0.5f * x * (1.f + fast_tanh(0.79788456080286536f * fmaf(0.044715f * x * x, x, x)));
  }
};
struct Sigmoid {
  static VITC_DEVICE float apply(float x) {
    return fast_divide(1.f, 1.f + fast_exp2(-1.44269504088896341f * x));
  }
};
struct GeluQuick {  // x sigmoid(1.702 x)
  static VITC_DEVICE float apply(float x) { return x * Sigmoid::apply(1.702f * x); }
};
struct Silu {
  static VITC_DEVICE float apply(float x) { return x * Sigmoid::apply(x); }
};
struct HardSwish {  // x clip(x + 3, 0, 6) / 6
  static VITC_DEVICE float apply(float x) {
    return x * minimum(maximum(x + 3.f, 0.f), 6.f) * (1.f / 6.f);
  }
};

// ---- steps
// -----------------------------------------------------------------------------------------------
template <class Function, int V>
VITC_DEVICE void apply(float (&v)[V]) {
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] = Function::apply(v[i]);
}

// v = f(v), elementwise.
template <int V, class F>
VITC_DEVICE void transform(float (&v)[V], const F& f) {
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] = f(v[i]);
}

// v = f(v, other[0..V)), elementwise; `other` is aligned as vectors are.
template <int V, class T, class F>
VITC_DEVICE void combine(float (&v)[V], const T* other, const F& f) {
  float o[V];
  load_floats<V>(o, other);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] = f(v[i], o[i]);
}
template <int V, class T, class F>
VITC_DEVICE void combine_unaligned(float (&v)[V], const T* other, const F& f) {
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] = f(v[i], to_float(other[i]));
}

template <int V>
VITC_DEVICE void scale(float (&v)[V], float factor) {
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] *= factor;
}

// v += terms[0..V): a bias at its column, a residual or a table at its row and column.
template <int V, class T>
VITC_DEVICE void add(float (&v)[V], const T* terms) {
  float other[V];
  load_floats<V>(other, terms);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] += other[i];
}

// v *= factors[0..V): a gate.
template <int V, class T>
VITC_DEVICE void multiply(float (&v)[V], const T* factors) {
  float other[V];
  load_floats<V>(other, factors);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] *= other[i];
}

// Stores v, and leaves in v what was stored, so that a sum of squares speaks of the values that the
// next kernel reads.
template <int V, class T>
VITC_DEVICE void write(T* to, float (&v)[V]) {
  T rounded[V];
  if constexpr (V % 2 == 0) {
    VITC_UNROLL
    for (int i = 0; i < V; i += 2) {
      const Vector<T, 2> pair = round_pair<T>(v[i], v[i + 1]);
      rounded[i] = pair.v[0];
      rounded[i + 1] = pair.v[1];
    }
  } else {
    VITC_UNROLL
    for (int i = 0; i < V; ++i) rounded[i] = from_float<T>(v[i]);
  }
  store<V>(to, rounded);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] = to_float(rounded[i]);
}

template <int V, class T>
VITC_DEVICE void write_unaligned(T* to, float (&v)[V]) {
  VITC_UNROLL
  for (int i = 0; i < V; ++i) {
    to[i] = from_float<T>(v[i]);
    v[i] = to_float(to[i]);
  }
}

// 1 / sqrt(mean of squares + eps) of a row from the partial sums that its writers left: kSlices of
// them, which lie at begin(i) in runs of kRun, kAligned at a time; begin is -1 for zeros.
template <int kSlices, int kRun, int kAligned = 1, class Begin>
VITC_DEVICE float rstd(const float* partial_sums, const Begin& begin, float one_over_n, float eps) {
  float sum = 0;
  VITC_UNROLL
  for (int i = 0; i < kSlices; i += kRun) {
    const int at = begin(i);
    if (at < 0) continue;
    float sums[kRun];
    VITC_UNROLL
    for (int j = 0; j < kRun; j += kAligned) {
      float piece[kAligned];
      load(piece, partial_sums + at + j);
      VITC_UNROLL
      for (int c = 0; c < kAligned; ++c) sums[j + c] = piece[c];
    }
    VITC_UNROLL
    for (int j = 0; j < kRun; ++j) sum += sums[j];
  }
  return 1.f / sqrtf(fmaf(sum, one_over_n, eps));
}

}  // namespace vitc::gpu
