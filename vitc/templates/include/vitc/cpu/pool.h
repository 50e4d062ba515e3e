// Pooling over windows of an NHWC image, with an epilogue.
#pragma once
#include "vitc/cpu/math.h"
#include "vitc/cpu/tasks.h"
#include "vitc/cpu/window.h"
#include "vitc/kernel.h"

namespace vitc {
inline namespace VITC_ISA {

enum class Pool {
  kMax,         // padding counts as -infinity
  kMean,        // over the taps inside the image
  kMeanPadded,  // over all taps, padding counts as 0
};

template <class T, class S, Pool kPool, class Epilogue>
struct Pool2d {
  static constexpr uint64_t scratch(int) { return 0; }

  static int run(const Call& call, const T* image, const Epilogue& epilogue) {
    static_assert(Epilogue::kSlice == 0, "pooling emits no statistics");
    for_ranges(call.exec, call.batch * S::kOutH * S::kOutW, 8, [&](int64_t m, int64_t end, int) {
      for (; m < end; ++m) {
        const Window w = window_at<S>(m);
        const int64_t inside = (w.ky1 - w.ky0) * (w.kx1 - w.kx0);
        const float scale =
            1.f / (kPool == Pool::kMean ? max_of<int64_t>(inside, 1) : S::kKernelH * S::kKernelW);
        typename Epilogue::Row row = epilogue.begin(m);
        for_lanes(S::kChannels, [&](int64_t c, auto lanes) {
          Vec total = kPool == Pool::kMax ? splat(-__builtin_inff()) : Vec{};
          for (int64_t ky = w.ky0; ky < w.ky1; ++ky) {
            const int64_t y = w.image * S::kHeight + w.y + ky * S::kDilationH;
            for (int64_t kx = w.kx0; kx < w.kx1; ++kx) {
              const int64_t x = w.x + kx * S::kDilationW;
              const Vec v = load(image + (y * S::kWidth + x) * S::kChannels + c, lanes);
              total = kPool == Pool::kMax ? max(total, v) : total + v;
            }
          }
          if (kPool != Pool::kMax) total = total * scale;
          epilogue.apply(total, row, c, lanes);
        });
      }
    });
    return 0;
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
