// What an epilogue functor is made of: steps over kVector neighbouring columns of one output row,
// in float. A generated functor calls them in the order of the IR's epilogue and ends with write().
//
//   struct Epilogue {
//     static constexpr bool kRowScale;
//     float row_scale(int row) const;                    // if kRowScale: once per row and block
//     template <int V> void operator()(int row, int column, float (&v)[V], float row_scale) const;
//     template <int V> void steps(int row, int column, float (&v)[V], float row_scale) const;
//     template <int V> void store(int row, int column, float (&v)[V], bool inside) const;
//     using Statistics = NoStatistics, Squares or SquaresAndSum;
//     void statistics(int row, int slice, const Statistics& s) const;   // but with NoStatistics
//     float* statistics_at(int row, int slice) const;    // where they go, which follow each other
//   };
//
// V is the vector width, or 1 where N is no multiple of it; columns [column, column + V) are
// inside. statistics() receives those of each column slice (a warp's part of the tile,
// Tile::kSlice columns) of what v holds after the call, which is steps() and then store(): the
// latter rounds v also where that is not inside the output. Deriving from NoRowTerms leaves both
// out.
#pragma once

#include "vitc/gpu/device.h"

namespace vitc::gpu {

// ---- statistics: what a later kernel has to know of a row to normalise it
// -----------------------------------------------------------------
struct NoStatistics {
  static constexpr int kNumbers = 0;
  template <int V>
  VITC_DEVICE void add(const float (&)[V]) {}
};
// For rows that are centred, or that an RMS norm normalises.
struct Squares {
  static constexpr int kNumbers = 1;  // that write() leaves
  float squares = 0;

  template <int V>
  VITC_DEVICE void add(const float (&v)[V]) {
    VITC_UNROLL
    for (int c = 0; c < V; ++c) squares = fmaf(v[c], v[c], squares);
  }
  // Of kLanes neighbouring lanes together.
  template <int kLanes>
  VITC_DEVICE Squares total() const {
    return {warp_sum<kLanes>(squares)};
  }
  VITC_DEVICE void write(float* to) const { *to = squares; }
  // Adds what write() left of another slice.
  VITC_DEVICE void take(const float* from) { squares += *from; }
  // 1 / sqrt(mean of squares + eps)
  VITC_DEVICE float rstd(float one_over_n, float eps) const {
    return 1.f / sqrtf(fmaf(squares, one_over_n, eps));
  }
};
// For layer norms of rows that have a mean.
struct SquaresAndSum {
  static constexpr int kNumbers = 2;
  float squares = 0, sum = 0;

  template <int V>
  VITC_DEVICE void add(const float (&v)[V]) {
    VITC_UNROLL
    for (int c = 0; c < V; ++c) {
      squares = fmaf(v[c], v[c], squares);
      sum += v[c];
    }
  }
  template <int kLanes>
  VITC_DEVICE SquaresAndSum total() const {
    return {warp_sum<kLanes>(squares), warp_sum<kLanes>(sum)};
  }
  VITC_DEVICE void write(float* to) const {
    const float pair[2] = {squares, sum};
    store<2>(to, pair);
  }
  VITC_DEVICE void take(const float* from) {
    squares += from[0];
    sum += from[1];
  }
  // 1 / sqrt(mean of squares - mean^2 + eps)
  VITC_DEVICE float rstd(float one_over_n, float eps) const {
    const float mean = sum * one_over_n;
    return 1.f / sqrtf(maximum(fmaf(squares, one_over_n, -mean * mean), 0.f) + eps);
  }
};

struct NoRowTerms {
  static constexpr bool kRowScale = false;
  using Statistics = NoStatistics;
  VITC_DEVICE float row_scale(int) const { return 1; }
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

// v = f(v, other[0..V)), elementwise; `other`, a pointer or Constant, is aligned as vectors are.
template <int V, class From, class F>
VITC_DEVICE void combine(float (&v)[V], From other, const F& f) {
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
template <int V, class From>
VITC_DEVICE void add(float (&v)[V], From terms) {
  float other[V];
  load_floats<V>(other, terms);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] += other[i];
}

// v *= factors[0..V): a gate.
template <int V, class From>
VITC_DEVICE void multiply(float (&v)[V], From factors) {
  float other[V];
  load_floats<V>(other, factors);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] *= other[i];
}

// Stores v, if that is inside the output, and leaves in v what was stored, so that statistics speak
// of the values that the next kernel reads.
template <int V, class T>
VITC_DEVICE void write(T* to, float (&v)[V], bool inside = true) {
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
  if (inside) store<V>(to, rounded);
  VITC_UNROLL
  for (int i = 0; i < V; ++i) v[i] = to_float(rounded[i]);
}

template <int V, class T>
VITC_DEVICE void write_unaligned(T* to, float (&v)[V], bool inside = true) {
  VITC_UNROLL
  for (int i = 0; i < V; ++i) {
    const T rounded = from_float<T>(v[i]);
    if (inside) to[i] = rounded;
    v[i] = to_float(rounded);
  }
}

// Statistics::rstd of a row from what its writers left of it: kCount floats, which lie at begin(i)
// in runs of kRun, kAligned at a time; begin is -1 for zeros.
template <class Statistics, int kCount, int kRun, int kAligned = 1, class Begin>
VITC_DEVICE float rstd(const float* partial, const Begin& begin, float one_over_n, float eps) {
  static_assert(kRun % Statistics::kNumbers == 0);
  Statistics row;
  VITC_UNROLL
  for (int i = 0; i < kCount; i += kRun) {
    const int at = begin(i);
    if (at < 0) continue;
    float run[kRun];
    VITC_UNROLL
    for (int j = 0; j < kRun; j += kAligned) {
      float piece[kAligned];
      load(piece, partial + at + j);
      VITC_UNROLL
      for (int c = 0; c < kAligned; ++c) run[j + c] = piece[c];
    }
    VITC_UNROLL
    for (int j = 0; j < kRun; j += Statistics::kNumbers) row.take(run + j);
  }
  return row.rstd(one_over_n, eps);
}

}  // namespace vitc::gpu
