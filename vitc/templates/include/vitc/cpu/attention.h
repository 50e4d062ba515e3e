// out = softmax(scale * q k^T + bias) v, per image and head, with all of a row of scores at once.
//
// A worker packs the K and V of a head into panels, once, and then takes blocks of query rows: a
// few tiles of scores stay in L1/L2 between the two products. All arithmetic is float32.
#pragma once
#include "vitc/cpu/math.h"
#include "vitc/cpu/pack.h"
#include "vitc/cpu/tasks.h"
#include "vitc/kernel.h"

namespace vitc {
inline namespace VITC_ISA {

// A [batch, heads, rows, d] view: strides in elements, the last dimension is dense.
template <class T>
struct HeadView {
  T* data;
  int64_t batch, head, row;
  VITC_INLINE T* at(int64_t b, int64_t h, int64_t n) const {
    return data + b * batch + h * head + n * row;
  }
};

template <class T, int64_t kHeads, int64_t kQueries, int64_t kKeys, int64_t kDim, int64_t kValueDim>
struct Attention {
  static constexpr int64_t kBlock = min_of<int64_t>(2 * kTileRows, round_up(kQueries, kSmallRows));
  static constexpr int64_t kBlocks = ceil_div(kQueries, kBlock);
  static constexpr int64_t kKeyPanels = ceil_div(kKeys, kPanel);
  static constexpr int64_t kValuePanels = ceil_div(kValueDim, kPanel);
  static constexpr int64_t kQueryStride = packed_stride(kDim, sizeof(float));
  static constexpr int64_t kScoreStride = packed_stride(kKeyPanels * kPanel, sizeof(float));

  struct Worker {
    alignas(64) float keys[kKeyPanels * kDim * kPanel];
    alignas(64) float values[kValuePanels * kKeys * kPanel];
    alignas(64) float queries[(kBlock + kTileRows) * kQueryStride];
    alignas(64) float scores[(kBlock + kTileRows) * kScoreStride];
    alignas(64) float tile[kTileRows * kPanel];
    float inverse[kBlock];
  };

  static constexpr uint64_t scratch(int threads) {
    return uint64_t(threads) * (sizeof(TaskRange) + sizeof(Worker));
  }

  // bias.data may be null; its strides may be 0.
  static int run(const Call& call, HeadView<const T> q, HeadView<const T> k, HeadView<const T> v,
                 HeadView<T> out, float scale, HeadView<const float> bias = {}) {
    const int workers = call.exec->threads();
    TaskRange* ranges = static_cast<TaskRange*>(call.scratch);
    Worker* state = reinterpret_cast<Worker*>(ranges + workers);
    split_tasks(ranges, call.batch * kHeads * kBlocks, workers);
    parallel_for(call.exec, workers, [&](int64_t w, int) {
      Worker& worker = state[w];
      int64_t packed = -1;
      for (int64_t task; (task = claim_task(ranges, w, workers)) >= 0;) {
        const int64_t item = task / kBlocks, b = item / kHeads, h = item % kHeads;
        if (item != packed) {
          pack_transposed<kDim>(k.at(b, h, 0), k.row, kKeys, worker.keys);
          pack_straight<kValueDim>(v.at(b, h, 0), v.row, kKeys, worker.values);
        }
        packed = item;
        const int64_t first = task % kBlocks * kBlock;
        const int64_t rows = min_of(kBlock, kQueries - first);
        score(worker, q.at(b, h, first), q.row, rows, scale);
        soften(worker, bias.data ? bias.at(b, h, first) : nullptr, bias.row, rows);
        mix(worker, out.at(b, h, first), out.row, rows);
      }
    });
    return 0;
  }

 private:
  // Exponentials are taken to base 2, so scale and bias are multiplied by log2(e).
  static constexpr float kLog2e = 1.44269504f;

  // scores = scale * log2(e) * q k^T
  [[gnu::noinline]] static void score(Worker& worker, const T* q, int64_t stride, int64_t rows,
                                      float scale) {
    for (int64_t i = 0; i < rows; ++i) {
      float* dst = worker.queries + i * kQueryStride;
      for_lanes(kDim, [&](int64_t d, auto lanes) {
        store(dst + d, load(q + i * stride + d, lanes) * (scale * kLog2e), lanes);
      });
    }
    fill_zero(worker.queries + rows * kQueryStride, (padded_rows_of(rows) - rows) * kQueryStride);
    for (int64_t p = 0; p < kKeyPanels; ++p) {
      const float* panel = worker.keys + p * kDim * kPanel;
      for (int64_t i = 0; i < rows; i += kTileRows)
        multiply_rows<float, kQueryStride, kScoreStride>(
            min_of<int64_t>(kTileRows, rows - i), worker.queries + i * kQueryStride, panel, kDim,
            worker.scores + i * kScoreStride + p * kPanel, resident(panel));
    }
  }

  // Scores become weights; their sum is divided out after the second product.
  [[gnu::noinline]] static void soften(Worker& worker, const float* bias, int64_t bias_stride,
                                       int64_t rows) {
    for (int64_t i = 0; i < rows; ++i) {
      float* row = worker.scores + i * kScoreStride;
      Vec largest = splat(-3e38f), total = Vec{};
      for_lanes(kKeys, [&](int64_t n, auto lanes) {
        Vec x = load(row + n, lanes);
        if (bias) {
          x = fma(load(bias + i * bias_stride + n, lanes), splat(kLog2e), x);
          store(row + n, x, lanes);
        }
        largest = max(largest, select(x, largest, lanes));
      });
      const float top = max_lane(largest);
      for_lanes(kKeys, [&](int64_t n, auto lanes) {
        const Vec x = exp2_(max(splat(-150.f), load(row + n, lanes) - top));
        total = total + store(row + n, x, lanes);
      });
      worker.inverse[i] = 1.f / sum(total);
    }
  }

  // out = weights * v / sum
  [[gnu::noinline]] static void mix(Worker& worker, T* out, int64_t stride, int64_t rows) {
    for (int64_t p = 0; p < kValuePanels; ++p) {
      const float* panel = worker.values + p * kKeys * kPanel;
      const int64_t columns = min_of<int64_t>(kPanel, kValueDim - p * kPanel);
      for (int64_t i = 0; i < rows; i += kTileRows) {
        const int64_t count = min_of<int64_t>(kTileRows, rows - i);
        multiply_rows<float, kScoreStride>(count, worker.scores + i * kScoreStride, panel, kKeys,
                                           worker.tile, resident(panel));
        for (int64_t r = 0; r < count; ++r)
          for_lanes(columns, [&](int64_t n, auto lanes) {
            store(out + (i + r) * stride + p * kPanel + n,
                  load(worker.tile + r * kPanel + n) * worker.inverse[i + r], lanes);
          });
      }
    }
  }

  // Rows that the tiles of `rows` rows compute.
  static constexpr int64_t padded_rows_of(int64_t rows) {
    const int64_t tail = rows % kTileRows;
    return rows - tail + (tail ? padded_rows(tail) : 0);
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
