// out = f(softmax(scale * q k^T + bias) v) per image (or window) and head, with all of a row of
// scores at once.
//
// A worker works out where the rows of an image lie, once, packs the K and V of a head into panels,
// once, and then takes blocks of query rows: the scores stay in L1 between the two products. All
// arithmetic is float32.
#pragma once
#include "vitc/cpu/math.h"
#include "vitc/cpu/pack.h"
#include "vitc/cpu/tasks.h"
#include "vitc/kernel.h"

namespace vitc {
inline namespace VITC_ISA {

// What a model decides about an attention is a struct S of constants, for example
//   struct S {
//     static constexpr int64_t kHeads = 3, kQueries = 49, kKeys = 49, kDim = 32, kValueDim = 32;
//     static constexpr float kScale = 0.177f;
//     // Element (b, h, n, d) of q is data[row(b, n) + h * kHead + d]; a row that is negative is
//     all
//     // zeros, and of the output is not stored.
//     struct Query {
//       static constexpr int64_t kHead = 32;
//       static int64_t row(int64_t b, int64_t n) { return (b * 49 + n) * 288; }
//     };
//     using Key = Query;  // with a pointer of its own; equal rows are worked out once
//     using Value = Query;
//     struct Out { ... };
//     // Score (b, h, n, key) gets bias[bias_image(b) + h * kBiasHead + n * kBiasRow + key].
//     static constexpr bool kBias = true;
//     static constexpr int64_t kBiasHead = 49 * 49, kBiasRow = 49;
//     static int64_t bias_image(int64_t b) { return 0; }
//     // Tokens of window b % kWindows whose regions differ get kApart; 0 windows: no regions.
//     static constexpr int64_t kWindows = 0;
//     static constexpr float kApart = -100;
//     static constexpr bool kFactors = false;  // scores of head h are multiplied by factors[h]
//     static constexpr bool kCosine = false;   // rows of q and k are divided by max(norm, kEps)
//     static constexpr float kEps = 0;
//     static Vec finish(Vec x) { return x; }  // f
//   };
template <class T, class S>
struct Attention {
  static constexpr int64_t kHeads = S::kHeads, kQueries = S::kQueries, kKeys = S::kKeys;
  static constexpr int64_t kDim = S::kDim, kValueDim = S::kValueDim;
  static constexpr int64_t kKeyPanels = ceil_div(kKeys, kPanel);
  static constexpr int64_t kValuePanels = ceil_div(kValueDim, kPanel);
  static constexpr int64_t kQueryStride = packed_stride(kDim, sizeof(float));
  static constexpr int64_t kScoreStride = packed_stride(kKeyPanels * kPanel, sizeof(float));
  // Rows of a block: all queries of a small window, else as many as leave their scores in L1.
  static constexpr int64_t kScoreBytes = 24 * 1024;
  static constexpr int64_t kBlock =
      min_of<int64_t>(round_up(kQueries, kSmallRows),
                      max_of<int64_t>(2, kScoreBytes / (kScoreStride * 4) / kTileRows) * kTileRows);
  static constexpr int64_t kBlocks = ceil_div(kQueries, kBlock);

  using Query = typename S::Query;
  using Key = typename S::Key;
  using Value = typename S::Value;
  using Out = typename S::Out;
  // Operands whose rows lie alike share a list of them.
  static constexpr int kKeyRows = kSameType<Key, Query> ? 0 : 1;
  static constexpr int kValueRows = kSameType<Value, Key> ? kKeyRows : 2;
  static constexpr int64_t kMostRows = max_of(kQueries, kKeys);

  struct Worker {
    alignas(64) float keys[kKeyPanels * kDim * kPanel];
    alignas(64) float values[kValuePanels * kKeys * kPanel];
    alignas(64) float queries[(kBlock + kTileRows) * kQueryStride];
    alignas(64) float scores[(kBlock + kTileRows) * kScoreStride];
    alignas(64) float tile[kTileRows * kPanel];
    alignas(64) float key_scale[S::kCosine ? round_up(kKeys, 16) : 1];
    alignas(64) float regions[S::kWindows ? round_up(kKeys, 16) : 1];
    bool mixed;  // whether the window has more than one region
    float inverse[kBlock];
    int64_t rows[3][kMostRows], out_rows[kQueries];
    T zeros[max_of(kDim, kValueDim)];
  };

  static constexpr uint64_t scratch(int threads) {
    return uint64_t(threads) * (sizeof(TaskRange) + sizeof(Worker));
  }

  // images: windows count as such. bias, regions [kWindows, kKeys] and factors [kHeads] may be null
  // where S does without.
  static int run(const Call& call, int64_t images, const T* q, const T* k, const T* v, T* out,
                 const float* bias, const int32_t* regions, const float* factors) {
    const int workers = call.exec->threads();
    TaskRange* ranges = static_cast<TaskRange*>(call.scratch);
    Worker* state = reinterpret_cast<Worker*>(ranges + workers);
    split_tasks(ranges, images * kHeads * kBlocks, workers);
    parallel_for(call.exec, workers, [&](int64_t w, int) {
      Worker& worker = state[w];
      fill_zero(worker.zeros, max_of(kDim, kValueDim));
      int64_t located = -1, packed = -1;
      for (int64_t task; (task = claim_task(ranges, w, workers)) >= 0;) {
        const int64_t item = task / kBlocks, b = item / kHeads, h = item % kHeads;
        if (b != located) locate(worker, b, regions);
        located = b;
        if (item != packed) pack(worker, k + h * Key::kHead, v + h * Value::kHead);
        packed = item;
        const int64_t first = task % kBlocks * kBlock;
        const int64_t rows = min_of(kBlock, kQueries - first);
        score(worker, q + h * Query::kHead, first, rows, S::kFactors ? factors[h] : 1.f);
        const float* added =
            S::kBias ? bias + S::bias_image(b) + h * S::kBiasHead + first * S::kBiasRow : nullptr;
        const int64_t next = min_of(item + 1, images * kHeads - 1), nh = next % kHeads;
        const Ahead ahead = {q + nh * Query::kHead, k + nh * Key::kHead, v + nh * Value::kHead,
                             out + nh * Out::kHead, next / kHeads};
        if (S::kWindows && worker.mixed)
          soften<S::kWindows != 0>(worker, added, first, rows, ahead);
        else
          soften<false>(worker, added, first, rows, ahead);
        mix(worker, out + h * Out::kHead, first, rows);
      }
    });
    return 0;
  }

 private:
  // Exponentials are taken to base 2, so all that makes up scores is multiplied by log2(e).
  static constexpr float kLog2e = 1.44269504f;

  // Finds the rows of image b, and the regions of its tokens.
  [[gnu::noinline]] static void locate(Worker& worker, int64_t b, const int32_t* regions) {
    const int64_t queries = kKeyRows == 0 ? kMostRows : kQueries;
    for (int64_t n = 0; n < queries; ++n) worker.rows[0][n] = Query::row(b, n);
    if (kKeyRows != 0)
      for (int64_t n = 0; n < kKeys; ++n) worker.rows[kKeyRows][n] = Key::row(b, n);
    if (kValueRows != kKeyRows)
      for (int64_t n = 0; n < kKeys; ++n) worker.rows[kValueRows][n] = Value::row(b, n);
    for (int64_t n = 0; n < kQueries; ++n) worker.out_rows[n] = Out::row(b, n);
    if constexpr (S::kWindows != 0) {
      const int32_t* own = regions + b % S::kWindows * kKeys;
      worker.mixed = false;
      for (int64_t n = 0; n < kKeys; ++n) {
        worker.regions[n] = float(own[n]);
        worker.mixed |= own[n] != own[0];
      }
    }
  }

  // The next image and head, whose rows `soften` brings into L2: rows of windows lie too far apart
  // for the hardware to foresee.
  struct Ahead {
    const T *q, *k, *v, *out;
    int64_t b;
  };

  static VITC_INLINE void fetch(const Ahead& ahead, int64_t i) {
    fetch_row(ahead.q, Query::row(ahead.b, i), kDim);
    fetch_row(ahead.out, Out::row(ahead.b, i), kValueDim);
    constexpr int64_t kEach = ceil_div(kKeys, kQueries);
    for (int64_t n = i * kEach; n < min_of((i + 1) * kEach, kKeys); ++n) {
      fetch_row(ahead.k, Key::row(ahead.b, n), kDim);
      fetch_row(ahead.v, Value::row(ahead.b, n), kValueDim);
    }
  }
  static VITC_INLINE void fetch_row(const T* data, int64_t row, int64_t size) {
    if (row < 0) return;
    for (int64_t d = 0; d < size; d += 64 / int64_t{sizeof(T)})
      _mm_prefetch(reinterpret_cast<const char*>(data + row + d), _MM_HINT_T1);
  }

  static VITC_INLINE const T* row_of(const Worker& worker, const T* data, int list, int64_t n) {
    const int64_t row = worker.rows[list][n];
    return row < 0 ? worker.zeros : data + row;
  }

  // 1 / max(norm, kEps)
  static VITC_INLINE float inverse_norm(const T* row) {
    Vec squares = Vec{};
    for_lanes(kDim, [&](int64_t d, auto lanes) {
      const Vec x = load(row + d, lanes);
      squares = fma(x, x, squares);
    });
    const float total = sum(squares);
    return total > S::kEps * S::kEps ? rsqrt(total) : 1.f / S::kEps;
  }

  [[gnu::noinline]] static void pack(Worker& worker, const T* k, const T* v) {
    const auto key = [&](int64_t n) { return row_of(worker, k, kKeyRows, n); };
    pack_transposed<kDim>(key, kKeys, worker.keys);
    pack_straight<kValueDim>([&](int64_t n) { return row_of(worker, v, kValueRows, n); }, kKeys,
                             worker.values);
    if constexpr (S::kCosine)
      for (int64_t n = 0; n < kKeys; ++n) worker.key_scale[n] = inverse_norm(key(n));
  }

  // scores = scale * log2(e) * q k^T
  [[gnu::noinline]] static void score(Worker& worker, const T* q, int64_t first, int64_t rows,
                                      float factor) {
    for (int64_t i = 0; i < rows; ++i) {
      const T* src = row_of(worker, q, 0, first + i);
      float* dst = worker.queries + i * kQueryStride;
      float scale = S::kScale * kLog2e * factor;
      if constexpr (S::kCosine) scale *= inverse_norm(src);
      for_lanes(kDim, [&](int64_t d, auto lanes) {
        store(dst + d, load(src + d, lanes) * scale, lanes);
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

  // Scores become weights; their sum is divided out after the second product. Whole vectors are
  // stored, with weights of 0 behind the last key: what a masked store leaves is slow to load.
  template <bool kMixed>
  [[gnu::noinline]] static void soften(Worker& worker, [[maybe_unused]] const float* bias,
                                       int64_t first, int64_t rows, const Ahead& ahead) {
    for (int64_t i = 0; i < rows; ++i) {
      fetch(ahead, first + i);
      float* row = worker.scores + i * kScoreStride;
      Vec largest = splat(-3e38f), total = Vec{};
      for_lanes(kKeys, [&](int64_t n, auto lanes) {
        Vec x = load(row + n);
        if constexpr (S::kCosine) x = x * load(worker.key_scale + n);
        if constexpr (S::kBias) x = fma(load(bias + i * S::kBiasRow + n, lanes), splat(kLog2e), x);
        if constexpr (kMixed)
          x = x + where_differ(load(worker.regions + n), splat(worker.regions[first + i]),
                               S::kApart * kLog2e);
        x = select(x, splat(-3e38f), lanes);
        store(row + n, x);
        largest = max(largest, x);
      });
      const float top = max_lane(largest);
      for (int64_t n = 0; n < kKeys; n += kLanes) {
        const Vec x = exp2_(max(splat(-150.f), load(row + n) - top));
        total = total + store(row + n, x);
      }
      worker.inverse[i] = 1.f / sum(total);
    }
  }

  // out = f(weights * v / sum)
  [[gnu::noinline]] static void mix(Worker& worker, T* out, int64_t first, int64_t rows) {
    for (int64_t p = 0; p < kValuePanels; ++p) {
      const float* panel = worker.values + p * kKeys * kPanel;
      const int64_t columns = min_of<int64_t>(kPanel, kValueDim - p * kPanel);
      for (int64_t i = 0; i < rows; i += kTileRows) {
        const int64_t count = min_of<int64_t>(kTileRows, rows - i);
        multiply_rows<float, kScoreStride>(count, worker.scores + i * kScoreStride, panel, kKeys,
                                           worker.tile, resident(panel));
        for (int64_t r = 0; r < count; ++r) {
          const int64_t row = worker.out_rows[first + i + r];
          if (row < 0) continue;
          for_lanes(columns, [&](int64_t n, auto lanes) {
            const Vec x = load(worker.tile + r * kPanel + n) * worker.inverse[i + r];
            store(out + row + p * kPanel + n, S::finish(x), lanes);
          });
        }
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
