// Convolution as a GEMM whose A operand is the image seen through a window (im2col, a block of rows
// at a time, in L2): Gemm<Cout, K, ColumnsNhwc<...>, W, Epilogue> with m = batch * kOutH * kOutW. A
// 1x1 convolution of stride 1 is a Gemm over DenseRows.
#pragma once
#include "vitc/cpu/gemm.h"
#include "vitc/cpu/window.h"

namespace vitc {
inline namespace VITC_ISA {

// Columns in (ky, kx, channel) order: weights [Cout, kKernelH, kKernelW, kUsed]. kUsed channels
// from `first` on are read: one group of a grouped convolution.
template <class T, class S, int64_t kUsed = S::kChannels>
struct ColumnsNhwc {
  using Element = T;
  static constexpr int64_t kStride = 0;
  static constexpr int64_t kColumns = S::kKernelH * S::kKernelW * kUsed;
  const T* data;  // [batch, kHeight, kWidth, kChannels]
  int64_t first = 0;

  template <class To>
  VITC_INLINE void copy_row(int64_t m, To* dst) const {
    constexpr int64_t kRun = S::kKernelW * kUsed;
    constexpr bool kWhole = kUsed == S::kChannels && S::kDilationW == 1;
    const Window w = window_at<S>(m);
    for (int64_t ky = 0; ky < S::kKernelH; ++ky, dst += kRun) {
      if (ky < w.ky0 || ky >= w.ky1) {
        fill_zero(dst, kRun);
        continue;
      }
      const int64_t y = w.image * S::kHeight + w.y + ky * S::kDilationH;
      const T* src = data + (y * S::kWidth + w.x) * S::kChannels + first;
      if (kWhole && w.kx0 == 0 && w.kx1 == S::kKernelW) {
        copy(dst, src, kRun);
        continue;
      }
      fill_zero(dst, w.kx0 * kUsed);
      for (int64_t kx = w.kx0; kx < w.kx1; ++kx)
        copy(dst + kx * kUsed, src + kx * S::kDilationW * S::kChannels, kUsed);
      fill_zero(dst + w.kx1 * kUsed, (S::kKernelW - w.kx1) * kUsed);
    }
  }
};

// Convolution of an image in torch's layout, [batch, kChannels, kHeight, kWidth]: a model's first
// layer, with few channels. A task is a row of outputs; the image rows that it sees are copied,
// padded, to where the tile reads them in place, each output pixel kStrideW further on. Weights:
// float32 [kOut, kChannels, kKernelH, kKernelW] in panels.
template <class T, class S, int64_t kOut, class Epilogue>
struct PlanesConv {
  using Row = typename Epilogue::Row;
  static constexpr int64_t kLines = S::kChannels * S::kKernelH;
  static constexpr int64_t kTaps = kLines * S::kKernelW;
  static constexpr int64_t kPanels = ceil_div(kOut, kPanel);
  static_assert(Epilogue::kSlice == 0, "it emits no statistics");
  // Columns behind a row of outputs, in whole tiles.
  static constexpr int64_t kSpan =
      (round_up(S::kOutW, kTileRows) - 1) * S::kStrideW + (S::kKernelW - 1) * S::kDilationW + 1;
  static constexpr int64_t kInside = min_of(S::kWidth, kSpan - S::kPadLeft);

  struct Worker {
    alignas(64) float tile[kTileRows * kPanel];
    alignas(64) float lines[kLines * kSpan];
  };
  static constexpr uint64_t scratch(int threads) { return uint64_t(threads) * sizeof(Worker); }

  static int run(const Call& call, const T* image, const float* weights, const Epilogue& epilogue) {
    Worker* workers = static_cast<Worker*>(call.scratch);
    for_ranges(call.exec, call.batch * S::kOutH, 1, [&](int64_t line, int64_t end, int thread) {
      Worker& worker = workers[thread];
      for (; line < end; ++line) {
        copy_lines(image, line / S::kOutH, line % S::kOutH, worker.lines);
        for (int64_t x = 0; x < S::kOutW; x += kTileRows)
          run_tile(worker, weights, epilogue, line * S::kOutW + x, x);
      }
    });
    return 0;
  }

 private:
  [[gnu::noinline]] static void copy_lines(const T* image, int64_t b, int64_t oy, float* dst) {
    for (int64_t c = 0; c < S::kChannels; ++c)
      for (int64_t ky = 0; ky < S::kKernelH; ++ky, dst += kSpan) {
        const int64_t y = oy * S::kStrideH - S::kPadTop + ky * S::kDilationH;
        if (y < 0 || y >= S::kHeight) {
          fill_zero(dst, kSpan);
          continue;
        }
        fill_zero(dst, S::kPadLeft);
        copy(dst + S::kPadLeft, image + ((b * S::kChannels + c) * S::kHeight + y) * S::kWidth,
             kInside);
        fill_zero(dst + S::kPadLeft + kInside, kSpan - S::kPadLeft - kInside);
      }
  }

  // Output pixels x ... of a row, the first being row m of the result.
  static void run_tile(Worker& worker, const float* weights, const Epilogue& epilogue, int64_t m,
                       int64_t x) {
    const int64_t count = min_of<int64_t>(kTileRows, S::kOutW - x);
    Row rows[kTileRows];
    for (int64_t i = 0; i < count; ++i) rows[i] = epilogue.begin(m + i);
    for (int64_t p = 0; p < kPanels; ++p) {
      multiply(worker.lines + x * S::kStrideW, weights + p * kTaps * kPanel, worker.tile);
      for (int64_t i = 0; i < count; ++i)
        for_lanes(min_of<int64_t>(kPanel, kOut - p * kPanel), [&](int64_t j, auto lanes) {
          epilogue.apply(load(worker.tile + i * kPanel + j), rows[i], p * kPanel + j, lanes);
        });
    }
  }

  // tile = kTileRows pixels x one panel
  [[gnu::noinline]] static void multiply(const float* lines, const float* panel, float* tile) {
    for (int64_t half = 0; half < kPanel; half += 2 * kLanes) {
      Vec acc[kTileRows][2];
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) acc[r][0] = acc[r][1] = Vec{};
      const float* b = panel + half;
      for (int64_t line = 0; line < kLines; ++line)
#pragma GCC unroll 1  // unrolled, the accumulators would no longer fit the registers
        for (int64_t kx = 0; kx < S::kKernelW; ++kx, b += kPanel)
          Product<float>::step<kTileRows, S::kStrideW>(lines + line * kSpan + kx * S::kDilationW, b,
                                                       acc);
#pragma GCC unroll 16
      for (int r = 0; r < kTileRows; ++r) {
        store(tile + r * kPanel + half, acc[r][0]);
        store(tile + r * kPanel + half + kLanes, acc[r][1]);
      }
    }
  }
};

// An epilogue seen from group g: columns start at its first output channel.
template <class Epilogue>
struct GroupEpilogue {
  Epilogue inner;
  int64_t first;
  static_assert(Epilogue::kSlice == 0, "grouped convolutions emit no statistics");
  static constexpr int64_t kSlice = 0;
  using Row = typename Epilogue::Row;
  VITC_INLINE Row begin(int64_t m) const { return inner.begin(m); }
  template <class Lanes>
  VITC_INLINE void apply(Vec x, Row& row, int64_t n, Lanes lanes) const {
    inner.apply(x, row, first + n, lanes);
  }
};

// General groups over an NHWC image, one GEMM after the other. Weights: the groups' panels in a
// row, each [Cout / groups, kKernelH, kKernelW, Cin / groups] packed by itself.
template <class T, class S, int64_t kOut, int64_t kGroups, class W, class Epilogue>
struct GroupedConv {
  using Rows = ColumnsNhwc<T, S, S::kChannels / kGroups>;
  using Product = Gemm<kOut / kGroups, Rows::kColumns, Rows, W, GroupEpilogue<Epilogue>>;

  static constexpr uint64_t scratch(int threads) { return Product::scratch(threads); }

  static int run(const Call& call, const T* image, const W* weights, const Epilogue& epilogue) {
    for (int64_t g = 0; g < kGroups; ++g)
      Product::run(call, call.batch * S::kOutH * S::kOutW,
                   Rows{image, g * (S::kChannels / kGroups)},
                   weights + g * Product::kPanels * Product::kPanelSize,
                   GroupEpilogue<Epilogue>{epilogue, g * (kOut / kGroups)});
    return 0;
  }
};

// One filter per channel of an NHWC image. Weights: float32 [kKernelH, kKernelW, kChannels].
template <class T, class S, class Epilogue>
struct DepthwiseConv {
  static constexpr uint64_t scratch(int) { return 0; }

  static int run(const Call& call, const T* image, const float* weights, const Epilogue& epilogue) {
    static_assert(Epilogue::kSlice == 0, "depthwise convolutions emit no statistics");
    for_ranges(call.exec, call.batch * S::kOutH * S::kOutW, 8, [&](int64_t m, int64_t end, int) {
      for (; m < end; ++m) {
        const Window w = window_at<S>(m);
        typename Epilogue::Row row = epilogue.begin(m);
        for_lanes(S::kChannels, [&](int64_t c, auto lanes) {
          Vec total = Vec{};
          for (int64_t ky = w.ky0; ky < w.ky1; ++ky) {
            const int64_t y = w.image * S::kHeight + w.y + ky * S::kDilationH;
            for (int64_t kx = w.kx0; kx < w.kx1; ++kx) {
              const int64_t x = w.x + kx * S::kDilationW;
              total = fma(load(image + (y * S::kWidth + x) * S::kChannels + c, lanes),
                          load(weights + (ky * S::kKernelW + kx) * S::kChannels + c, lanes), total);
            }
          }
          epilogue.apply(total, row, c, lanes);
        });
      }
    });
    return 0;
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
