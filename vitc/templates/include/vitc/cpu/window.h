// What convolutions and pooling share: the geometry of sliding windows.
#pragma once
#include "vitc/cpu/simd.h"

namespace vitc {
inline namespace VITC_ISA {

// A window operator is described by a struct of constants, for example
//   struct Shape {
//     static constexpr int64_t kHeight = 56, kWidth = 56, kChannels = 64;   // input
//     static constexpr int64_t kKernelH = 3, kKernelW = 3, kStrideH = 2, kStrideW = 2;
//     static constexpr int64_t kPadTop = 1, kPadLeft = 1, kDilationH = 1, kDilationW = 1;
//     static constexpr int64_t kOutH = 28, kOutW = 28;
//   };
// Output row m is pixel (image, oy, ox) with m = (image * kOutH + oy) * kOutW + ox; padding at the
// bottom and right is whatever kOutH and kOutW imply.
struct Window {
  int64_t image, y, x;         // top left corner, may lie outside
  int64_t ky0, ky1, kx0, kx1;  // taps inside the image
};

// First tap k with start + k * dilation >= 0, and one past the last with it < size.
VITC_INLINE int64_t first_tap(int64_t start, int64_t dilation, int64_t taps) {
  return start >= 0 ? 0 : min_of(taps, ceil_div(-start, dilation));
}
VITC_INLINE int64_t end_tap(int64_t start, int64_t dilation, int64_t taps, int64_t size) {
  return start >= size ? 0 : min_of(taps, (size - 1 - start) / dilation + 1);
}

template <class S>
VITC_INLINE Window window_at(int64_t m) {
  const int64_t ox = m % S::kOutW, oy = m / S::kOutW % S::kOutH;
  Window w;
  w.image = m / S::kOutW / S::kOutH;
  w.y = oy * S::kStrideH - S::kPadTop;
  w.x = ox * S::kStrideW - S::kPadLeft;
  w.ky0 = first_tap(w.y, S::kDilationH, S::kKernelH);
  w.ky1 = max_of(w.ky0, end_tap(w.y, S::kDilationH, S::kKernelH, S::kHeight));
  w.kx0 = first_tap(w.x, S::kDilationW, S::kKernelW);
  w.kx1 = max_of(w.kx0, end_tap(w.x, S::kDilationW, S::kKernelW, S::kWidth));
  return w;
}

}  // namespace VITC_ISA
}  // namespace vitc
