// Kernels over rows: what no GEMM epilogue or index map absorbs.
//
//   norm_rows        layer norm, rms norm (a warp per row)      softmax_rows   (a warp per row)
//   group_norm       NHWC or NCHW (a block per image and group) reduce_middle  mean, sum or max
//   over an axis pointwise        any functor, broadcasting by its own index arithmetic gather
//   copies elements or 16-byte chunks by an index functor
//
// Statistics are in float, two passes over registers: the mean first, then the squares around it.
#pragma once

#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/launch.h"
#include "vitc/gpu/ptx.h"

namespace vitc::gpu {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;

// The elements of a row of kN that one lane holds: vectors of 16 bytes where the row allows, else
// single elements, strided over the warp so that neighbouring lanes read neighbouring memory.
template <class T, int kN>
struct LaneRow {
  static constexpr int kVector = kN % (16 / int(sizeof(T))) == 0 ? 16 / int(sizeof(T)) : 1;
  static constexpr int kPieces = (kN + kVector * kWarp - 1) / (kVector * kWarp);
  float v[kPieces][kVector];

  static VITC_DEVICE int column(int piece) { return (piece * kWarp + lane()) * kVector; }

  VITC_DEVICE void read(const T* row, float missing) {
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) v[p][e] = missing;
      if (column(p) < kN) load_floats<kVector>(v[p], row + column(p));
    }
  }
  template <class Function>  // float(float value, int column)
  VITC_DEVICE void map(const Function& function) {
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) {
        if (column(p) < kN) v[p][e] = function(v[p][e], column(p) + e);
      }
    }
  }
  VITC_DEVICE float sum() const {
    float total = 0;
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) total += v[p][e];
    }
    return warp_sum(total);
  }
  VITC_DEVICE float sum_squares_around(float mean) const {
    float total = 0;
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) {
        const float difference = column(p) < kN ? v[p][e] - mean : 0.f;
        total = fmaf(difference, difference, total);
      }
    }
    return warp_sum(total);
  }
  VITC_DEVICE float largest() const {
    float top = -INFINITY;
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) top = maximum(top, v[p][e]);
    }
    return warp_max(top);
  }
  template <class Out>
  VITC_DEVICE void write(Out* row) const {
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      if (column(p) < kN) store_floats<kVector>(row + column(p), v[p]);
    }
  }
};

// ---- layer norm and rms norm
// ------------------------------------------------------------------------------ out[r] =
// (x[map(r)] - mean) * rstd * weight + bias. kCentre = false is rms norm. weight or bias may be
// null. `Map`: int(int row), the row of x to read.
template <class T, class Out, int kN, bool kCentre, class Map>
VITC_KERNEL(kRowThreads, 1)
norm_rows_kernel(int rows, const T* x, const T* weight, const T* bias, Out* out, float eps,
                 Map map) {
  wait_for_previous_kernel();
  const int row = block() * kRowWarps + warp(), read = minimum(row, rows - 1);
  LaneRow<T, kN> values;
  values.read(x + int64_t(map(read)) * kN, 0.f);
  const float mean = kCentre ? values.sum() * (1.f / kN) : 0.f;
  const float scale = 1.f / sqrtf(values.sum_squares_around(mean) * (1.f / kN) + eps);
  values.map([&](float v, int column) {
    v = (v - mean) * scale;
    if (weight != nullptr) v *= to_float(weight[column]);
    return bias != nullptr ? v + to_float(bias[column]) : v;
  });
  if (row < rows) values.write(out + int64_t(row) * kN);
}

struct SameRow {
  VITC_DEVICE int operator()(int row) const { return row; }
};

template <int kN, bool kCentre = true, class T, class Out, class Map = SameRow>
int norm_rows(const char* name, Stream stream, int rows, const T* x, const T* weight, const T* bias,
              Out* out, float eps, const Map& map = {}) {
  return launch({name, Dim3(unsigned(divide_up(rows, kRowWarps))), kRowThreads, 0, stream},
                norm_rows_kernel<T, Out, kN, kCentre, Map>, rows, x, weight, bias, out, eps, map);
}

// ---- softmax
// ----------------------------------------------------------------------------------------------
template <class T, class Out, int kN>
VITC_KERNEL(kRowThreads, 1)
softmax_rows_kernel(int rows, const T* x, Out* out, float scale) {
  wait_for_previous_kernel();
  const int row = block() * kRowWarps + warp(), read = minimum(row, rows - 1);
  LaneRow<T, kN> values;
  values.read(x + int64_t(read) * kN, -INFINITY);
  values.map([&](float v, int) { return v * scale; });
  const float top = values.largest(), shift = top == -INFINITY ? 0.f : top;
  VITC_UNROLL
  for (int p = 0; p < LaneRow<T, kN>::kPieces; ++p) {  // what is missing becomes exp(-inf) = 0
    VITC_UNROLL
    for (int e = 0; e < LaneRow<T, kN>::kVector; ++e) {
      values.v[p][e] = fast_exp2((values.v[p][e] - shift) * 1.44269504088896341f);
    }
  }
  const float inverse = 1.f / values.sum();
  values.map([&](float v, int) { return v * inverse; });
  if (row < rows) values.write(out + int64_t(row) * kN);
}

template <int kN, class T, class Out>
int softmax_rows(const char* name, Stream stream, int rows, const T* x, Out* out, float scale) {
  return launch({name, Dim3(unsigned(divide_up(rows, kRowWarps))), kRowThreads, 0, stream},
                softmax_rows_kernel<T, Out, kN>, rows, x, out, scale);
}

// ---- sums over a block
// ------------------------------------------------------------------------------------ The sum over
// all threads; every thread receives it. `scratch`: kRowWarps floats of shared memory.
VITC_DEVICE float block_sum(float value, float* scratch) {
  value = warp_sum(value);
  sync_block();  // whoever still reads the last sum
  if (lane() == 0) scratch[warp()] = value;
  sync_block();
  float total = 0;
  VITC_UNROLL
  for (int w = 0; w < kRowWarps; ++w) total += scratch[w];
  return total;
}

// ---- group norm
// ------------------------------------------------------------------------------------------- Over
// kChannels / kGroups channels and all kPositions of an image; x is [image, position, channel] if
// kChannelsLast, else [image, channel, position]. weight and bias are per channel.
template <class T, class Out, int kChannels, int kPositions, int kGroups, bool kChannelsLast>
VITC_KERNEL(kRowThreads, 1)
group_norm_kernel(const T* x, const T* weight, const T* bias, Out* out, float eps) {
  wait_for_previous_kernel();
  VITC_SHARED(float, scratch, kRowWarps);
  constexpr int kWidth = kChannels / kGroups, kCount = kWidth * kPositions;
  const int image = block() / kGroups, group = block() % kGroups;
  const int64_t base = int64_t(image) * kChannels * kPositions;
  const auto channel = [&](int i) {
    return group * kWidth + (kChannelsLast ? i % kWidth : i / kPositions);
  };
  const auto offset = [&](int i) {
    return base + (kChannelsLast ? int64_t(i / kWidth) * kChannels + channel(i)
                                 : int64_t(group) * kWidth * kPositions + i);
  };
  float sum = 0, squares = 0;
  for (int i = thread(); i < kCount; i += kRowThreads) sum += to_float(x[offset(i)]);
  const float mean = block_sum(sum, scratch) * (1.f / kCount);
  for (int i = thread(); i < kCount; i += kRowThreads) {
    const float difference = to_float(x[offset(i)]) - mean;
    squares = fmaf(difference, difference, squares);
  }
  const float scale = 1.f / sqrtf(block_sum(squares, scratch) * (1.f / kCount) + eps);
  for (int i = thread(); i < kCount; i += kRowThreads) {
    const float v = (to_float(x[offset(i)]) - mean) * scale;
    out[offset(i)] =
        from_float<Out>(fmaf(v, to_float(weight[channel(i)]), to_float(bias[channel(i)])));
  }
}

template <int kChannels, int kPositions, int kGroups, bool kChannelsLast, class T, class Out>
int group_norm(const char* name, Stream stream, int images, const T* x, const T* weight,
               const T* bias, Out* out, float eps) {
  return launch({name, Dim3(unsigned(images * kGroups)), kRowThreads, 0, stream},
                group_norm_kernel<T, Out, kChannels, kPositions, kGroups, kChannelsLast>, x, weight,
                bias, out, eps);
}

// ---- reductions over an axis
// ------------------------------------------------------------------------------
struct SumOf {
  static constexpr float kFirst = 0;
  static VITC_DEVICE float join(float a, float b) { return a + b; }
};
struct MaxOf {
  static constexpr float kFirst = -INFINITY;
  static VITC_DEVICE float join(float a, float b) { return maximum(a, b); }
};

// out[o, i] = factor * reduction over r of x[o, r, i]; a thread per (o, i), or with kInner = 1 a
// warp per o.
template <class T, class Out, class Reduction, int kReduced, int kInner>
VITC_KERNEL(kRowThreads, 1)
reduce_kernel(int outer, const T* x, Out* out, float factor) {
  wait_for_previous_kernel();
  float value = Reduction::kFirst;
  if constexpr (kInner == 1) {
    const int row = block() * kRowWarps + warp();
    const T* from = x + int64_t(minimum(row, outer - 1)) * kReduced;
    for (int r = lane(); r < kReduced; r += kWarp)
      value = Reduction::join(value, to_float(from[r]));
    VITC_UNROLL
    for (int mask = kWarp / 2; mask > 0; mask /= 2)
      value = Reduction::join(value, shuffle_xor(value, mask));
    if (row < outer && lane() == 0) out[row] = from_float<Out>(value * factor);
  } else {
    const int64_t i = int64_t(block()) * kRowThreads + thread();
    if (i >= int64_t(outer) * kInner) return;  // no collective follows
    const T* from = x + i / kInner * kReduced * kInner + i % kInner;
    for (int r = 0; r < kReduced; ++r)
      value = Reduction::join(value, to_float(from[int64_t(r) * kInner]));
    out[i] = from_float<Out>(value * factor);
  }
}

template <class Reduction, int kReduced, int kInner, class T, class Out>
int reduce(const char* name, Stream stream, int outer, const T* x, Out* out, float factor) {
  const int64_t blocks = kInner == 1 ? divide_up(outer, kRowWarps)
                                     : (int64_t(outer) * kInner + kRowThreads - 1) / kRowThreads;
  return launch({name, Dim3(unsigned(blocks)), kRowThreads, 0, stream},
                reduce_kernel<T, Out, Reduction, kReduced, kInner>, outer, x, out, factor);
}

// ---- pointwise and copies
// --------------------------------------------------------------------------------- Calls
// function(first) for first = 0, kWidth, 2 kWidth... below count: the functor reads, computes and
// writes elements [first, first + kWidth) of the output, with whatever broadcasting its indices
// express.
template <class Function, int kWidth>
VITC_KERNEL(kRowThreads, 1)
pointwise_kernel(int64_t count, Function function) {
  wait_for_previous_kernel();
  const int64_t first = (int64_t(block()) * kRowThreads + thread()) * kWidth;
  if (first < count) function(first);
}

template <int kWidth = 1, class Function>
int pointwise(const char* name, Stream stream, int64_t count, const Function& function) {
  const int64_t step = int64_t(kRowThreads) * kWidth;
  return launch({name, Dim3(unsigned((count + step - 1) / step)), kRowThreads, 0, stream},
                pointwise_kernel<Function, kWidth>, count, function);
}

// out[i] = x[map(i)], or zero where map(i) is negative; in pieces of kWidth elements, whose sources
// are contiguous and aligned. `Map`: int64_t(int64_t element), called for multiples of kWidth.
template <class T, int kWidth, class Map>
struct Gather {
  const T* x;
  T* out;
  Map map;
  VITC_DEVICE void operator()(int64_t first) const {
    const int64_t from = map(first);
    T v[kWidth];
    if (from >= 0) {
      load<kWidth>(v, x + from);
    } else {
      VITC_UNROLL
      for (int e = 0; e < kWidth; ++e) v[e] = from_float<T>(0.f);
    }
    store<kWidth>(out + first, v);
  }
};

template <int kWidth, class T, class Map>
int gather(const char* name, Stream stream, int64_t count, const T* x, T* out, const Map& map) {
  return pointwise<kWidth>(name, stream, count, Gather<T, kWidth, Map>{x, out, map});
}

}  // namespace vitc::gpu
