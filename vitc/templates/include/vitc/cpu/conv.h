// Convolution as a GEMM whose A operand is the image seen through a window (im2col, a block of rows
// at a time, in L2): Gemm<Cout, K, ColumnsNhwc<...> or ColumnsNchw<...>, W, Epilogue> with
// m = batch * kOutH * kOutW. A 1x1 convolution of stride 1 is a Gemm over DenseRows.
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

// Columns in (channel, ky, kx) order: torch's weights as they are. Patch embedding is the case of
// stride = kernel.
template <class T, class S>
struct ColumnsNchw {
  using Element = T;
  static constexpr int64_t kStride = 0;
  static constexpr int64_t kColumns = S::kChannels * S::kKernelH * S::kKernelW;
  const T* data;  // [batch, kChannels, kHeight, kWidth]

  template <class To>
  VITC_INLINE void copy_row(int64_t m, To* dst) const {
    const Window w = window_at<S>(m);
    const bool whole = S::kDilationW == 1 && w.kx0 == 0 && w.kx1 == S::kKernelW;
    for (int64_t c = 0; c < S::kChannels; ++c) {
      const T* plane = data + (w.image * S::kChannels + c) * S::kHeight * S::kWidth;
      for (int64_t ky = 0; ky < S::kKernelH; ++ky, dst += S::kKernelW) {
        const T* src = plane + (w.y + ky * S::kDilationH) * S::kWidth + w.x;
        if (ky < w.ky0 || ky >= w.ky1) {
          fill_zero(dst, S::kKernelW);
        } else if (whole) {
          copy(dst, src, S::kKernelW);
        } else {
          fill_zero(dst, S::kKernelW);
          for (int64_t kx = w.kx0; kx < w.kx1; ++kx)
            from_float(to_float(src[kx * S::kDilationW]), dst + kx);
        }
      }
    }
  }
};

// An epilogue seen from group g: columns start at its first output channel.
template <class Epilogue>
struct GroupEpilogue {
  Epilogue inner;
  int64_t first;
  static_assert(Epilogue::kSlice == 0, "grouped convolutions emit no sums of squares");
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
    static_assert(Epilogue::kSlice == 0, "depthwise convolutions emit no sums of squares");
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
