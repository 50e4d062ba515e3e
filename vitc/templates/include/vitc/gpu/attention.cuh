// out = softmax(scale Q K^T + bias) V per (batch, head), straight from and to strided matrices.
//
// A warp owns 16 query rows, a block kWarps of them; keys come in blocks of kBlockKeys, the next
// one being copied while one is used. When one block holds all keys, the softmax sees a whole row
// at once (short sequences); otherwise it is the online form, which rescales the running sum and
// output (M. Milakov and N. Gimelshein, 2018; Dao et al., 2022). Rows and keys past the end are
// masked.
#pragma once

#include "vitc/gpu/attention_math.h"
#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/launch.h"

namespace vitc::gpu {

// ---- functors that generated text may replace
// ------------------------------------------------------------- Rows of a head in a strided matrix:
// `offset` counts elements, which must be a multiple of 16 bytes.
template <class T_, int kBatchStride, int kRowStride, int kHeadStride>
struct StridedHeads {
  using T = T_;
  T* data;
  VITC_DEVICE int offset(int batch, int head, int row) const {
    return batch * kBatchStride + row * kRowStride + head * kHeadStride;
  }
};

// Adds nothing to the scores.
struct NoBias {
  static constexpr bool kPresent = false;
  VITC_DEVICE void operator()(float (&)[2], int, int, int, int) const {}
};

// Adds table[batch % kClasses][head][query][key], a matrix of kRows x kColumns per class and head
// whose rows are kStride apart. Called for even `key` below the number of keys rounded up to 16:
// where kStride covers that, pairs are read at once and what stands in the padding does not matter,
// except that it must be no NaN.
template <class T, int kClasses, int kHeads, int kRows, int kColumns, int kStride>
struct TableBias {
  static constexpr bool kPresent = true;
  const T* table;
  VITC_DEVICE void operator()(float (&two)[2], int batch, int head, int query, int key) const {
    const T* row = table + ((batch % kClasses * kHeads + head) * kRows + query) * kStride;
    if constexpr (kStride % 2 == 0 && kStride >= (kColumns + 15) / 16 * 16) {
      load_floats<2>(two, row + key);
    } else {
      two[0] = to_float(row[minimum(key, kColumns - 1)]);
      two[1] = to_float(row[minimum(key + 1, kColumns - 1)]);
    }
  }
};

struct Identity {
  static VITC_DEVICE float apply(float x) { return x; }
};

// Writes pairs of columns of a row to `Heads` (StridedHeads or a generated functor of its form).
template <class Heads, class Activation = Identity>
struct HeadsOutput {
  Heads heads;
  VITC_DEVICE void operator()(int batch, int head, int query, int column, float (&v)[2]) const {
    VITC_UNROLL
    for (int i = 0; i < 2; ++i) v[i] = Activation::apply(v[i]);
    store_floats<2>(heads.data + heads.offset(batch, head, query) + column, v);
  }
};

// ---- configuration
// ----------------------------------------------------------------------------------------
template <class Policy_, int kQueries_, int kKeys_, int kHeadDim_, int kValueDim_, int kBlockKeys_,
          int kWarps_, bool kAsyncCopies_ = true>
struct AttentionTile {
  using Policy = Policy_;
  using Storage = typename Policy::Storage;
  static constexpr int kQueries = kQueries_, kKeys = kKeys_, kHeadDim = kHeadDim_,
                       kValueDim = kValueDim_;
  static constexpr int kBlockKeys = kBlockKeys_, kWarps = kWarps_, kThreads = kWarps * kWarp;
  static constexpr bool kAsyncCopies = kAsyncCopies_;
  static constexpr int kRows = 16 * kWarps;  // queries of a block
  static constexpr int kElements = 16 / int(sizeof(Storage));
  static_assert(kBlockKeys % 16 == 0 && kHeadDim % kElements == 0 && kValueDim % kElements == 0);

  // Rows in shared memory are padded with zeros to whole mma steps.
  static constexpr int kPaddedHead =
      (kHeadDim + 2 * kElements - 1) / (2 * kElements) * (2 * kElements);
  static constexpr int kPaddedValue = (kValueDim + 15) / 16 * 16;
  using LayoutK = SharedTile<kPaddedHead* int(sizeof(Storage))>;
  using LayoutV = SharedTile<kPaddedValue* int(sizeof(Storage))>;

  static constexpr int kBlocks = (kKeys + kBlockKeys - 1) / kBlockKeys;
  static constexpr int kTail =
      ((kKeys - (kBlocks - 1) * kBlockKeys) + 15) / 16 * 16;  // keys of the last
  static constexpr int kBytesQ = kRows * LayoutK::kRowBytes;
  static constexpr int kStageKeys = kBlocks == 1 ? kTail : kBlockKeys;
  static constexpr int kBytesK = kStageKeys * LayoutK::kRowBytes,
                       kBytesV = kStageKeys * LayoutV::kRowBytes;
  static constexpr int kStages = kBlocks == 1 ? 1 : 2;
  static constexpr int kSharedBytes = kBytesQ + kStages * (kBytesK + kBytesV);
  static constexpr int kQueryTiles = (kQueries + kRows - 1) / kRows;
};

// ---- copies
// -----------------------------------------------------------------------------------------------
// How many chunks a thread copies at once. The addresses of all of them outlive the loop over
// blocks, and three products a pair leave no registers for that.
template <class Policy>
constexpr int kCopiesAtOnce = 4;
template <>
constexpr int kCopiesAtOnce<Tf32x3> = 1;

// Rows [first, first + kRows) of a head, kWidth elements each, to a tile. Rows from `limit` on and
// the padding of rows are zeros.
template <class Tile, class Layout, int kRows, int kWidth, class Heads>
VITC_DEVICE void copy_rows(char* tile, const Heads& from, int batch, int head, int first,
                           int limit) {
  constexpr int kTotal = kRows * Layout::kChunks, kElements = Tile::kElements;
  using S = typename Tile::Storage;
  VITC_UNROLL_BY(kCopiesAtOnce<typename Tile::Policy>)
  for (int i = thread(); i < kTotal; i += Tile::kThreads) {
    const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
    const bool inside = first + row < limit && chunk * kElements < kWidth;
    const S* address =
        inside ? from.data + from.offset(batch, head, first + row) + chunk * kElements : from.data;
    S* target = reinterpret_cast<S*>(tile + Layout::offset(row, chunk));
    if constexpr (Tile::kAsyncCopies) {
      async_copy_16(target, address, inside);
    } else {
      S v[kElements];
      load<kElements>(v, address);
      VITC_UNROLL
      for (int e = 0; e < kElements; ++e) v[e] = inside ? v[e] : from_float<S>(0.f);
      store<kElements>(target, v);
    }
  }
  if constexpr (Tile::kAsyncCopies) async_copy_commit();
}

// ---- one warp's rows
// --------------------------------------------------------------------------------------
template <class Tile>
struct AttentionRows {
  static constexpr int kOut = Tile::kPaddedValue / 8;
  float out[kOut][4], top[2], sum[2];  // top: the largest score so far, in units of log2

  VITC_DEVICE void clear() {
    VITC_UNROLL
    for (int n = 0; n < kOut; ++n) {
      VITC_UNROLL
      for (int e = 0; e < 4; ++e) out[n][e] = 0;
    }
    VITC_UNROLL
    for (int half = 0; half < 2; ++half) top[half] = -INFINITY, sum[half] = 0;
  }

  // Turns scores into exp2(score - top), updating top and sum and rescaling `out`.
  template <int kTiles>
  VITC_DEVICE void softmax(float (&scores)[kTiles][4]) {
    VITC_UNROLL
    for (int half = 0; half < 2; ++half) {
      float largest = top[half];
      VITC_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        largest = maximum(largest, maximum(scores[j][2 * half], scores[j][2 * half + 1]));
      }
      largest = warp_max<4>(largest);
      const float shift = largest == -INFINITY ? 0.f : largest;  // a row that is masked so far
      float added = 0;
      VITC_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        VITC_UNROLL
        for (int e = 2 * half; e < 2 * half + 2; ++e) {
          scores[j][e] = fast_exp2(scores[j][e] - shift);
          added += scores[j][e];
        }
      }
      if constexpr (Tile::kBlocks == 1) {
        sum[half] = added;
      } else {
        const float kept = fast_exp2(top[half] - shift);
        sum[half] = fmaf(sum[half], kept, added);
        VITC_UNROLL
        for (int n = 0; n < kOut; ++n) out[n][2 * half] *= kept, out[n][2 * half + 1] *= kept;
      }
      top[half] = largest;
    }
  }
};

// ---- the kernel
// -------------------------------------------------------------------------------------------
template <class Tile, class Query, class Key, class Value, class Bias, class Output>
VITC_KERNEL(Tile::kThreads, 1)
attention_kernel(int heads, Query query, Key key, Value value, Bias bias, Output output,
                 float scale_log2) {
  using Policy = typename Tile::Policy;
  using LayoutK = typename Tile::LayoutK;
  using LayoutV = typename Tile::LayoutV;
  constexpr float kLog2E = 1.44269504088896341f;
  const int head = block() / Tile::kQueryTiles % heads, batch = block() / Tile::kQueryTiles / heads;
  const int first_query = block() % Tile::kQueryTiles * Tile::kRows;
  const int first_row = warp() * 16;                             // of this warp in the block
  const bool active = first_query + first_row < Tile::kQueries;  // else it only copies

  char* q = dynamic_shared<char>();
  char* stages = q + Tile::kBytesQ;
  const auto stage_k = [&](int b) {
    return stages + b % Tile::kStages * (Tile::kBytesK + Tile::kBytesV);
  };
  const auto stage_v = [&](int b) { return stage_k(b) + Tile::kBytesK; };
  const auto copy_block = [&](int b) {
    copy_rows<Tile, LayoutK, Tile::kStageKeys, Tile::kHeadDim>(stage_k(b), key, batch, head,
                                                               b * Tile::kBlockKeys, Tile::kKeys);
    copy_rows<Tile, LayoutV, Tile::kStageKeys, Tile::kValueDim>(stage_v(b), value, batch, head,
                                                                b * Tile::kBlockKeys, Tile::kKeys);
  };

  wait_for_previous_kernel();
  AttentionRows<Tile> rows;
  rows.clear();

  // One block of keys, of which kTiles tiles of 8 are used. Copies in flight on entry: Q (the first
  // time), then K and V of block b.
  const auto use_block = [&](int b, auto tiles, auto last) {
    constexpr int kTiles = decltype(tiles)::value;
    constexpr bool kLast = decltype(last)::value;
    float scores[kTiles][4];
    if constexpr (Tile::kAsyncCopies) async_copy_wait<1>();  // K of block b
    sync_block();  // and everyone is done with block b - 1
    if constexpr (!kLast) copy_block(b + 1);
    if (active) {
      query_times_key<Policy, LayoutK>(scores, q, first_row, stage_k(b));
      VITC_UNROLL
      for (int j = 0; j < kTiles; ++j) {
        const int first_key = b * Tile::kBlockKeys + j * 8 + lane() % 4 * 2;
        VITC_UNROLL
        for (int half = 0; half < 2; ++half) {
          float two[2] = {0, 0};
          if constexpr (Bias::kPresent) {
            const int row =
                minimum(first_query + first_row + half * 8 + lane() / 4, Tile::kQueries - 1);
            bias(two, batch, head, row, first_key);
          }
          VITC_UNROLL
          for (int e = 0; e < 2; ++e) {
            float score = fmaf(scores[j][2 * half + e], scale_log2, two[e] * kLog2E);
            if constexpr (kLast) score = first_key + e < Tile::kKeys ? score : -INFINITY;
            scores[j][2 * half + e] = score;
          }
        }
      }
      rows.softmax(scores);
    }
    if constexpr (Tile::kAsyncCopies) {
      async_copy_wait<kLast ? 0 : 2>();  // V of block b
      sync_block();
    }
    if (active) weights_times_value<Policy, LayoutV>(rows.out, scores, stage_v(b));
  };

  copy_rows<Tile, LayoutK, Tile::kRows, Tile::kHeadDim>(q, query, batch, head, first_query,
                                                        Tile::kQueries);
  copy_block(0);
  VITC_NO_UNROLL
  for (int b = 0; b < Tile::kBlocks - 1; ++b) use_block(b, Int<Tile::kBlockKeys / 8>{}, Int<0>{});
  use_block(Tile::kBlocks - 1, Int<Tile::kTail / 8>{}, Int<1>{});

  VITC_UNROLL
  for (int half = 0; half < 2; ++half) {
    const float total = warp_sum<4>(rows.sum[half]);
    const float inverse = 1.f / total;
    const int row = first_query + first_row + half * 8 + lane() / 4;
    VITC_UNROLL
    for (int n = 0; n < AttentionRows<Tile>::kOut; ++n) {
      const int column = n * 8 + lane() % 4 * 2;
      float v[2] = {rows.out[n][2 * half] * inverse, rows.out[n][2 * half + 1] * inverse};
      if (row < Tile::kQueries && column < Tile::kValueDim) output(batch, head, row, column, v);
    }
  }
}

// Launches the kernel for batch >= 1; `scale` multiplies Q K^T.
template <class Tile, class Query, class Key, class Value, class Bias, class Output>
int attention(const char* name, Stream stream, int batch, int heads, const Query& query,
              const Key& key, const Value& value, const Bias& bias, const Output& output,
              float scale) {
  const unsigned blocks = unsigned(batch) * unsigned(heads) * unsigned(Tile::kQueryTiles);
  return launch({name, Dim3(blocks), Tile::kThreads, size_t(Tile::kSharedBytes), stream},
                attention_kernel<Tile, Query, Key, Value, Bias, Output>, heads, query, key, value,
                bias, output, scale * 1.44269504088896341f);
}

}  // namespace vitc::gpu
