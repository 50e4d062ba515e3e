// Kernels that end in the same epilogue functors as a GEMM (epilogue.cuh): norms, softmax, copies
// and pointwise work by rows; reductions, group norm, pooling, direct convolution and small
// products by elements. What no tensor-core kernel absorbs is rare, so these are kept simple.
#pragma once

#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/launch.h"
#include "vitc/gpu/ptx.h"
#include "vitc/gpu/source.cuh"

namespace vitc::gpu {

constexpr int kRowThreads = 128, kRowWarps = kRowThreads / kWarp;

enum class RowOp { kNone, kLayerNorm, kRmsNorm, kCenter, kSoftmax };

// The elements of a row of kN that one lane holds: vectors of 16 bytes where the source allows,
// else single elements, strided over the warp so that neighbouring lanes touch neighbouring memory.
template <class Source, int kN>
struct LaneRow {
  using T = typename Source::T;
  static constexpr int kChunk = 16 / int(sizeof(T));
  static constexpr int kVector = Source::kVector && kN % kChunk == 0 ? kChunk : 1;
  static constexpr int kPieces = (kN + kVector * kWarp - 1) / (kVector * kWarp);
  float v[kPieces][kVector];

  static VITC_DEVICE int column(int piece) { return (piece * kWarp + lane()) * kVector; }

  VITC_DEVICE void read(const Source& source, int m) {
    const auto row = source.row(m);
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) v[p][e] = 0;
      const int at = column(p) < kN ? source.at(row, column(p)) : -1;
      if (at >= 0) load_floats<kVector>(v[p], source.base() + at);
    }
  }
  // f(value) on every element that exists, summed over the row or its largest.
  template <class F>
  VITC_DEVICE float sum(const F& f) const {
    float total = 0;
    each([&](float x, int, int) { total += f(x); });
    return warp_sum(total);
  }
  VITC_DEVICE float largest() const {
    float top = -INFINITY;
    each([&](float x, int, int) { top = maximum(top, x); });
    return warp_max(top);
  }
  template <class F>
  VITC_DEVICE void map(const F& f) {
    each([&](float x, int p, int e) { v[p][e] = f(x); });
  }

 private:
  template <class F>
  VITC_DEVICE void each(const F& f) const {
    VITC_UNROLL
    for (int p = 0; p < kPieces; ++p) {
      VITC_UNROLL
      for (int e = 0; e < kVector; ++e) {
        if (column(p) < kN) f(v[p][e], p, e);
      }
    }
  }
};

template <RowOp kOp, int kN, class Row>
VITC_DEVICE void transform_row(Row& row, float eps) {
  constexpr float kInverse = 1.f / kN;
  if constexpr (kOp == RowOp::kLayerNorm || kOp == RowOp::kCenter) {
    const float mean = row.sum([](float x) { return x; }) * kInverse;
    row.map([&](float x) { return x - mean; });
  }
  if constexpr (kOp == RowOp::kLayerNorm || kOp == RowOp::kRmsNorm) {
    const float scale = 1.f / sqrtf(row.sum([](float x) { return x * x; }) * kInverse + eps);
    row.map([&](float x) { return x * scale; });
  }
  if constexpr (kOp == RowOp::kSoftmax) {
    const float top = row.largest();
    row.map([&](float x) { return fast_exp2((x - top) * 1.44269504088896341f); });
    const float scale = 1.f / row.sum([](float x) { return x; });
    row.map([&](float x) { return x * scale; });
  }
}

// A warp per row. kSlice: columns that emitted statistics are of, 0 for none; whole vectors.
template <int kN, RowOp kOp, int kSlice, class Source, class Epilogue>
VITC_KERNEL(kRowThreads, 1)
rowwise_kernel(int rows, Source source, Epilogue epilogue, float eps) {
  using Row = LaneRow<Source, kN>;
  static_assert(kSlice == 0 || Row::kVector > 1, "statistics need rows of whole vectors");
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int m = block() * kRowWarps + warp(), read = minimum(m, rows - 1);
  Row row;
  row.read(source, read);
  transform_row<kOp, kN>(row, eps);
  const float scale = Epilogue::kRowScale ? epilogue.row_scale(read) : 1.f;
  VITC_UNROLL
  for (int p = 0; p < Row::kPieces; ++p) {
    const int n = Row::column(p);
    const bool inside = m < rows && n < kN;
    if (inside) epilogue(m, n, row.v[p], scale);
    if constexpr (kSlice > 0) {
      constexpr int kLanes = kSlice / Row::kVector;  // that share a slice
      typename Epilogue::Statistics slice;
      if (inside) slice.add(row.v[p]);
      slice = slice.template total<kLanes>();
      if (inside && lane() % kLanes == 0) epilogue.statistics(m, n / kSlice, slice);
    }
  }
}

template <int kN, RowOp kOp, int kSlice, class Source, class Epilogue>
int rowwise(const char* name, Stream stream, int rows, const Source& source,
            const Epilogue& epilogue, float eps) {
  return launch({name, Dim3(unsigned(divide_up(rows, kRowWarps))), kRowThreads, 0, stream},
                rowwise_kernel<kN, kOp, kSlice, Source, Epilogue>, rows, source, epilogue, eps);
}

// ---- one thread per element
// -------------------------------------------------------------------------------- epilogue(m, n)
// of value(m, n) for every element of [rows, kN].
template <int kN, class Value, class Epilogue>
VITC_KERNEL(kRowThreads, 1)
elementwise_kernel(int64_t count, Value value, Epilogue epilogue) {
  wait_for_previous_kernel();
  let_next_kernel_start();
  const int64_t i = int64_t(block()) * kRowThreads + thread();
  if (i >= count) return;  // no collective follows
  const int m = int(i / kN), n = int(i % kN);
  float v[1] = {value(m, n)};
  epilogue(m, n, v, Epilogue::kRowScale ? epilogue.row_scale(m) : 1.f);
}

template <int kN, class Value, class Epilogue>
int elementwise(const char* name, Stream stream, int rows, const Value& value,
                const Epilogue& epilogue) {
  const int64_t count = int64_t(rows) * kN;
  return launch(
      {name, Dim3(unsigned((count + kRowThreads - 1) / kRowThreads)), kRowThreads, 0, stream},
      elementwise_kernel<kN, Value, Epilogue>, count, value, epilogue);
}

enum class Reduction { kSum, kMean, kMax };

// Over kCount elements kStride apart; row m begins kOuter elements after the last, column n is n
// further.
template <class T, Reduction kKind, int kCount, int kOuter, int kStride>
struct ReduceAxis {
  const T* data;
  VITC_DEVICE float operator()(int m, int n) const {
    const T* from = data + int64_t(m) * kOuter + n;
    float total = kKind == Reduction::kMax ? -INFINITY : 0.f;
    for (int i = 0; i < kCount; ++i) {
      const float x = to_float(from[int64_t(i) * kStride]);
      total = kKind == Reduction::kMax ? maximum(total, x) : total + x;
    }
    return kKind == Reduction::kMean ? total * (1.f / kCount) : total;
  }
};

// A window over images; `Shape` states its geometry and the strides of the pixels as constants
// (templates/gpu).
template <class Shape>
struct WindowPosition {
  int corner, y, x;  // the top left one, which may lie outside; `corner` is its offset
  WindowPosition() = default;
  VITC_DEVICE explicit WindowPosition(int m)
      : y(m / Shape::kOutW % Shape::kOutH * Shape::kStrideH - Shape::kPadTop),
        x(m % Shape::kOutW * Shape::kStrideW - Shape::kPadLeft) {
    corner = m / (Shape::kOutH * Shape::kOutW) * Shape::kImageStride + y * Shape::kRowStride +
             x * Shape::kPixelStride;
  }
  // Offset of the tap's pixel, or -1 outside.
  VITC_DEVICE int tap(int ky, int kx) const {
    const int down = ky * Shape::kDilationH, right = kx * Shape::kDilationW;
    const bool inside = unsigned(y + down) < unsigned(Shape::kHeight) &&
                        unsigned(x + right) < unsigned(Shape::kWidth);
    return inside ? corner + (down * Shape::kRowStride + right * Shape::kPixelStride) : -1;
  }
};

enum class Pool { kMax, kMean, kMeanPadded };

template <class T, class Shape, Pool kPool>
struct PoolWindow {
  const T* image;
  VITC_DEVICE float operator()(int m, int n) const {
    const WindowPosition<Shape> window(m);
    float total = kPool == Pool::kMax ? -INFINITY : 0.f;
    int inside = 0;
    for (int ky = 0; ky < Shape::kKernelH; ++ky) {
      for (int kx = 0; kx < Shape::kKernelW; ++kx) {
        const int at = window.tap(ky, kx);
        if (at < 0) continue;
        const float x = to_float(image[at + n * Shape::kChannelStride]);
        total = kPool == Pool::kMax ? maximum(total, x) : total + x;
        ++inside;
      }
    }
    if (kPool == Pool::kMax) return total;
    return total / (kPool == Pool::kMean ? maximum(inside, 1) : Shape::kKernelH * Shape::kKernelW);
  }
};

// A grouped convolution, term by term. Weights [Cout, kKernelH, kKernelW, Cin / groups].
template <class T, class W, class Shape, int kOut, int kGroups>
struct DirectConv {
  const T* image;
  const W* weight;
  VITC_DEVICE float operator()(int m, int n) const {
    constexpr int kDepth = Shape::kChannels / kGroups;
    const WindowPosition<Shape> window(m);
    const W* w = weight + n * Shape::kKernelH * Shape::kKernelW * kDepth;
    const int first = n / (kOut / kGroups) * kDepth;
    float total = 0;
    for (int ky = 0; ky < Shape::kKernelH; ++ky) {
      for (int kx = 0; kx < Shape::kKernelW; ++kx, w += kDepth) {
        const int at = window.tap(ky, kx);
        if (at < 0) continue;
        for (int c = 0; c < kDepth; ++c)
          total = fmaf(to_float(image[at + (first + c) * Shape::kChannelStride]), to_float(w[c]),
                       total);
      }
    }
    return total;
  }
};

// A source of gemm.cuh: A's row is an output position, k runs over (ky, kx, channel) and on to kK.
// Shape::kVector: no chunk straddles two positions.
template <class T_, class Shape, int kK>
struct WindowRows {
  using T = T_;
  static constexpr bool kVector = Shape::kVector;
  using Row = WindowPosition<Shape>;
  const T* data;

  VITC_DEVICE Row row(int m) const { return Row(m); }
  VITC_DEVICE int at(const Row& row, int k) const {
    constexpr int kTaps = Shape::kKernelH * Shape::kKernelW;
    const int tap = k / Shape::kChannels, channel = k % Shape::kChannels;
    const int at = row.tap(tap / Shape::kKernelW, tap % Shape::kKernelW);
    const bool outside = kK > kTaps * Shape::kChannels && tap >= kTaps;
    return outside || at < 0 ? -1 : at + channel * Shape::kChannelStride;
  }
  VITC_DEVICE const T* base() const { return data; }
};

// Element (m, n) of item m / kM of a batched product: A's rows by a source, B's item by `offset`.
template <class Source, class T, class Offset, int kM, int kK, int kRowStride, int kColumnStride>
struct SmallProduct {
  Source source;
  const T* b;
  Offset offset;
  VITC_DEVICE float operator()(int m, int n) const {
    const auto row = source.row(m);
    const T* right = b + offset(m / kM) + int64_t(n) * kColumnStride;
    float total = 0;
    for (int k = 0; k < kK; ++k) {
      const int left = source.at(row, k);
      if (left >= 0)
        total =
            fmaf(to_float(source.base()[left]), to_float(right[int64_t(k) * kRowStride]), total);
    }
    return total;
  }
};

// ---- group norm: a block per image and group of channels
// ----------------------------------------------------- The sum over all threads; every thread
// receives it. `scratch`: kRowWarps floats of shared memory.
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

template <class T, int kPixels, int kChannels, int kGroups, class Epilogue>
VITC_KERNEL(kRowThreads, 1)
group_norm_kernel(const T* data, Epilogue epilogue, float eps) {
  VITC_SHARED(float, scratch, kRowWarps);
  constexpr int kWidth = kChannels / kGroups, kCount = kWidth * kPixels;
  const int image = block() / kGroups, first = block() % kGroups * kWidth;
  wait_for_previous_kernel();
  let_next_kernel_start();
  const auto value = [&](int i) {
    return to_float(data[(int64_t(image) * kPixels + i / kWidth) * kChannels + first + i % kWidth]);
  };
  float sum = 0, squares = 0;
  for (int i = thread(); i < kCount; i += kRowThreads) sum += value(i);
  const float mean = block_sum(sum, scratch) * (1.f / kCount);
  for (int i = thread(); i < kCount; i += kRowThreads) {
    const float difference = value(i) - mean;
    squares = fmaf(difference, difference, squares);
  }
  const float scale = 1.f / sqrtf(block_sum(squares, scratch) * (1.f / kCount) + eps);
  for (int i = thread(); i < kCount; i += kRowThreads) {
    float v[1] = {(value(i) - mean) * scale};
    epilogue(image * kPixels + i / kWidth, first + i % kWidth, v, 1.f);
  }
}

template <int kPixels, int kChannels, int kGroups, class T, class Epilogue>
int group_norm(const char* name, Stream stream, int images, const T* data, const Epilogue& epilogue,
               float eps) {
  return launch({name, Dim3(unsigned(images * kGroups)), kRowThreads, 0, stream},
                group_norm_kernel<T, kPixels, kChannels, kGroups, Epilogue>, data, epilogue, eps);
}

}  // namespace vitc::gpu
