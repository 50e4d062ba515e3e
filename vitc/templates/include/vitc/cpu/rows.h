// Kernels over the rows of a matrix: normalisations, softmax, and plain pointwise work. A row comes
// from an operand functor (strided, mapped, gathered, converted), goes through kOp and then, vector
// by vector, through the epilogue's steps. With RowOp::kNone this is the generic pointwise and the
// generic copy: further operands, broadcast or not, are loads in the epilogue.
#pragma once
#include "vitc/cpu/math.h"
#include "vitc/cpu/operands.h"
#include "vitc/cpu/tasks.h"
#include "vitc/kernel.h"

namespace vitc {
inline namespace VITC_ISA {

enum class RowOp {
  kNone,
  kLayerNorm,  // (x - mean) / sqrt(var + eps)
  kRmsNorm,    // x / sqrt(mean(x^2) + eps)
  kL2Norm,     // x / max(sqrt(sum(x^2)), eps)
  kCenter,     // x - mean
  kSoftmax,
};

template <int64_t kC, RowOp kOp, class Rows, class Epilogue>
struct RowWise {
  using Row = typename Epilogue::Row;
  static constexpr int64_t kSlice = Epilogue::kSlice ? Epilogue::kSlice : kC;

  struct Worker {
    alignas(64) float x[round_up(kC, 16)];
  };
  static constexpr uint64_t scratch(int threads) { return uint64_t(threads) * sizeof(Worker); }

  static int run(const Call& call, int64_t m, const Rows& rows, const Epilogue& epilogue,
                 float eps = 0) {
    Worker* workers = static_cast<Worker*>(call.scratch);
    const int64_t grain = ceil_div(4096, kC);  // about a microsecond of work
    for_ranges(call.exec, m, grain, [&](int64_t begin, int64_t end, int thread) {
      float* x = workers[thread].x;
      for (int64_t i = begin; i < end; ++i) {
        rows.copy_row(i, x);
        transform(x, eps);
        Row row = epilogue.begin(i);
        for (int64_t n = 0; n < kC; n += kSlice) {
          for_lanes(min_of(kSlice, kC - n), [&](int64_t j, auto lanes) {
            epilogue.apply(load(x + n + j, lanes), row, n + j, lanes);
          });
          if constexpr (Epilogue::kSlice != 0) epilogue.end_slice(row, i, n / kSlice);
        }
      }
    });
    return 0;
  }

 private:
  // sum of f(x) over the row; f gets the lanes to blank unused ones.
  template <class F>
  static VITC_INLINE float total(const float* x, const F& f) {
    Vec t = Vec{};
    for_lanes(kC, [&](int64_t n, auto lanes) { t = t + f(load(x + n, lanes), lanes); });
    return sum(t);
  }

  template <class F>
  static VITC_INLINE void replace(float* x, const F& f) {
    for_lanes(kC, [&](int64_t n, auto lanes) { store(x + n, f(load(x + n, lanes)), lanes); });
  }

  [[gnu::noinline]] static void transform(float* x, float eps) {
    constexpr float kInverse = 1.f / float(kC);
    auto value = [](Vec v, auto) { return v; };
    auto square = [](Vec v, auto) { return v * v; };
    if constexpr (kOp == RowOp::kLayerNorm || kOp == RowOp::kCenter) {
      const float mean = total(x, value) * kInverse;
      replace(x, [&](Vec v) { return v - mean; });
    }
    if constexpr (kOp == RowOp::kLayerNorm || kOp == RowOp::kRmsNorm) {
      const float scale = rsqrt(total(x, square) * kInverse + eps);
      replace(x, [&](Vec v) { return v * scale; });
    }
    if constexpr (kOp == RowOp::kL2Norm) {
      const float norm = 1.f / rsqrt(total(x, square));
      const float scale = 1.f / max_of(norm, eps);
      replace(x, [&](Vec v) { return v * scale; });
    }
    if constexpr (kOp == RowOp::kSoftmax) {
      Vec largest = splat(-__builtin_inff());
      for_lanes(kC, [&](int64_t n, auto lanes) {
        largest = max(largest, select(load(x + n, lanes), largest, lanes));
      });
      const float top = max_lane(largest);
      replace(x, [&](Vec v) { return exp_(v - top); });
      const float scale = 1.f / total(x, value);
      replace(x, [&](Vec v) { return v * scale; });
    }
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
