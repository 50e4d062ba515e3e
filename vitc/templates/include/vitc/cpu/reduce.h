// Reductions: over a middle axis (token and pixel averages), over the last axis, and group norm.
#pragma once
#include "vitc/cpu/math.h"
#include "vitc/cpu/tasks.h"
#include "vitc/kernel.h"

namespace vitc {
inline namespace VITC_ISA {

enum class ReduceOp { kSum, kMean, kMax };

// Input [outer, kCount, kInner] with any outer and axis strides (elements), innermost dense when
// kInner > 1; the epilogue sees row = outer index, column = inner index. kInner = 1 reduces dense
// rows of kCount elements.
template <class T, int64_t kCount, int64_t kInner, ReduceOp kOp, class Epilogue>
struct Reduce {
  static_assert(Epilogue::kSlice == 0, "reductions emit no statistics");
  static constexpr uint64_t scratch(int) { return 0; }
  // Columns of one task. Narrow, so that few images still occupy all threads.
  static constexpr int64_t kWidth = min_of<int64_t>(kInner, 4 * kLanes);
  static constexpr int64_t kTasks = ceil_div(kInner, kWidth);

  static int run(const Call& call, int64_t outer, const T* data, int64_t outer_stride,
                 int64_t axis_stride, const Epilogue& epilogue) {
    for_ranges(call.exec, outer * kTasks, 1, [&](int64_t task, int64_t end, int) {
      for (; task < end; ++task) {
        const int64_t o = task / kTasks, first = task % kTasks * kWidth;
        typename Epilogue::Row row = epilogue.begin(o);
        const T* src = data + o * outer_stride;
        if constexpr (kInner == 1) {
          Vec t = start();
          for_lanes(kCount, [&](int64_t i, auto lanes) {
            t = select(combine(t, load(src + i, lanes)), t, lanes);
          });
          const float all = kOp == ReduceOp::kMax ? max_lane(t) : sum(t);
          epilogue.apply(finish(splat(all)), row, 0, First{1});
        } else {
          for_lanes(min_of(kWidth, kInner - first), [&](int64_t j, auto lanes) {
            const T* column = src + first + j;
            Vec t = start();
            for (int64_t i = 0; i < kCount; i += kRun)
              t = combine(t, run_of(column, i, axis_stride, lanes));
            epilogue.apply(finish(t), row, first + j, lanes);
          });
        }
      }
    });
    return 0;
  }

 private:
  static constexpr int64_t kRun = 64;  // partial results of short runs keep rounding errors small

  template <class Lanes>
  static VITC_INLINE Vec run_of(const T* column, int64_t i, int64_t stride, Lanes lanes) {
    Vec t = start();
    for (const int64_t end = min_of(i + kRun, kCount); i < end; ++i)
      t = combine(t, load(column + i * stride, lanes));
    return t;
  }
  static VITC_INLINE Vec start() {
    return kOp == ReduceOp::kMax ? splat(-__builtin_inff()) : Vec{};
  }
  static VITC_INLINE Vec combine(Vec a, Vec b) { return kOp == ReduceOp::kMax ? max(a, b) : a + b; }
  static VITC_INLINE Vec finish(Vec t) {
    return kOp == ReduceOp::kMean ? t * (1.f / float(kCount)) : t;
  }
};

// Group norm of [batch, kPixels, kChannels]: statistics per image over all pixels of
// kChannels / kGroups neighbouring channels; the epilogue sees row = image * kPixels + pixel and
// the normalised value, and applies weight and bias.
template <class T, int64_t kPixels, int64_t kChannels, int64_t kGroups, class Epilogue>
struct GroupNorm {
  static_assert(kChannels % kGroups == 0 && Epilogue::kSlice == 0, "unsupported group norm");
  static constexpr int64_t kSize = kChannels / kGroups;
  // A task takes enough groups to fill vectors.
  static constexpr int64_t kTogether = min_of(kGroups, max_of<int64_t>(1, 2 * kLanes / kSize));
  static constexpr int64_t kWidth = kSize * kTogether;
  static constexpr int64_t kTasks = ceil_div(kGroups, kTogether);

  struct Worker {
    alignas(64) float mean[round_up(kWidth, 16)], scale[round_up(kWidth, 16)];
  };
  static constexpr uint64_t scratch(int threads) { return uint64_t(threads) * sizeof(Worker); }

  static int run(const Call& call, const T* data, const Epilogue& epilogue, float eps) {
    Worker* workers = static_cast<Worker*>(call.scratch);
    for_ranges(call.exec, call.batch * kTasks, 1, [&](int64_t task, int64_t end, int thread) {
      for (; task < end; ++task) {
        const int64_t image = task / kTasks, first = task % kTasks * kWidth;
        const int64_t width = min_of(kWidth, kChannels - first);
        normalise(workers[thread], data + image * kPixels * kChannels + first, width, eps);
        for (int64_t p = 0; p < kPixels; ++p) {
          const int64_t m = image * kPixels + p;
          typename Epilogue::Row row = epilogue.begin(m);
          const T* src = data + m * kChannels + first;
          const Worker& w = workers[thread];
          for_lanes(width, [&](int64_t j, auto lanes) {
            const Vec x = (load(src + j, lanes) - load(w.mean + j)) * load(w.scale + j);
            epilogue.apply(x, row, first + j, lanes);
          });
        }
      }
    });
    return 0;
  }

 private:
  // Mean and 1 / sqrt(var + eps), repeated for each channel of its group.
  [[gnu::noinline]] static void normalise(Worker& w, const T* src, int64_t width, float eps) {
    column_sums(src, width, w.mean, [](Vec x, int64_t) { return x; });
    spread(w.mean, width, [](float mean) { return mean; });
    column_sums(src, width, w.scale, [&](Vec x, int64_t j) {
      const Vec d = x - load(w.mean + j);
      return d * d;
    });
    spread(w.scale, width, [&](float var) { return rsqrt(var + eps); });
  }

  template <class F>
  static VITC_INLINE void column_sums(const T* src, int64_t width, float* sums, const F& f) {
    constexpr int64_t kRun = 128;  // two levels of sums: rounding grows with their length
    for_lanes(width, [&](int64_t j, auto lanes) {
      Vec total = Vec{};
      for (int64_t p = 0; p < kPixels; p += kRun) {
        Vec part = Vec{};
        for (int64_t i = p; i < min_of(p + kRun, kPixels); ++i)
          part = part + f(load(src + i * kChannels + j, lanes), j);
        total = total + part;
      }
      store(sums + j, total);
    });
  }

  template <class F>
  static VITC_INLINE void spread(float* sums, int64_t width, const F& f) {
    for (int64_t g = 0; g < width; g += kSize) {
      float total = 0;
      for (int64_t i = 0; i < kSize; ++i) total += sums[g + i];
      const float value = f(total / (float(kPixels) * float(kSize)));
      for (int64_t i = 0; i < kSize; ++i) sums[g + i] = value;
    }
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
