// Convolution of NHWC images as a GEMM whose A is never stored: a source for gemm.cuh.
#pragma once

#include "vitc/gpu/gemm.cuh"

namespace vitc::gpu {

// Row r is an output position, (image, y, x) with x fastest; k runs over (ky, kx, channel), so that
// the weight is [Cout, kKernelH, kKernelW, kChannels]. Positions outside the image are zeros.
template <class T_, int kChannels, int kHeight, int kWidth, int kKernelH, int kKernelW,
          int kStrideY, int kStrideX, int kPadY, int kPadX>
struct ConvRows {
  using T = T_;
  static constexpr int kOutH = (kHeight + 2 * kPadY - kKernelH) / kStrideY + 1;
  static constexpr int kOutW = (kWidth + 2 * kPadX - kKernelW) / kStrideX + 1;
  static constexpr int kK = kKernelH * kKernelW * kChannels;
  // A chunk holds 16 bytes of the storage type, 8 elements at most; it must not straddle two
  // positions.
  static constexpr bool kVector = kChannels % (sizeof(T) == 4 ? 4 : 8) == 0;
  struct Row {
    int offset;  // of the window's first position, which may lie outside
    int y, x;
  };
  const T* data;

  VITC_DEVICE Row row(int r) const {
    const int image = r / (kOutH * kOutW), y = r / kOutW % kOutH * kStrideY - kPadY,
              x = r % kOutW * kStrideX - kPadX;
    return {((image * kHeight + y) * kWidth + x) * kChannels, y, x};
  }
  VITC_DEVICE const T* at(const Row& row, int k) const {
    const int channel = k % kChannels, position = k / kChannels, ky = position / kKernelW,
              kx = position % kKernelW;
    const bool inside =
        unsigned(row.y + ky) < unsigned(kHeight) && unsigned(row.x + kx) < unsigned(kWidth);
    return inside ? data + row.offset + (ky * kWidth + kx) * kChannels + channel : nullptr;
  }
  VITC_DEVICE const T* base() const { return data; }
};

}  // namespace vitc::gpu
