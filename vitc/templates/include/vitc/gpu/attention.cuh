// out = softmax(scores) V per (batch, head), where scores = scale Q K^T and the terms of
// attention_terms.h; straight from and to wherever the rows of the heads lie.
//
// A warp owns 16 query rows, a group of kWarps warps one (batch, head), a block kGroups groups.
// Keys come in blocks of kBlockKeys, the next one being copied while one is used. When one block
// holds all keys, the softmax sees a whole row at once (short sequences); otherwise it is the
// online form, which rescales the running sum and output (M. Milakov and N. Gimelshein, 2018; Dao
// et al., 2022). Rows and keys past the end are masked.
//
// Query, Key, Value and Output are generated functors that say where heads lie:
//
//   using T = element type in memory;
//   static constexpr int kHead;       elements from one head to the next
//   T* data;
//   int row(int b, int n) const;      where row n of batch entry b begins for head 0, in elements;
//                                     -1: a row of zeros, or one that is not stored
//   void steps(float (&v)[V]) const;  of Output: what is done to the results first
//
// kHead and rows are multiples of 16 bytes.
#pragma once

#include "vitc/gpu/attention_math.h"
#include "vitc/gpu/attention_terms.h"
#include "vitc/gpu/launch.h"

namespace vitc::gpu {

// ---- configuration
// ----------------------------------------------------------------------------------------
template <class Policy_, int kQueries_, int kKeys_, int kHeadDim_, int kValueDim_, int kBlockKeys_,
          int kWarps_, int kGroups_, int kResident_, bool kAsyncCopies_ = true>
struct AttentionTile {
  using Policy = Policy_;
  using Storage = typename Policy::Storage;
  static constexpr int kQueries = kQueries_, kKeys = kKeys_, kHeadDim = kHeadDim_,
                       kValueDim = kValueDim_;
  static constexpr int kBlockKeys = kBlockKeys_, kWarps = kWarps_, kGroups = kGroups_;
  static constexpr int kResident = kResident_;  // blocks a multiprocessor has registers for
  static constexpr int kGroupThreads = kWarps * kWarp, kThreads = kGroups * kGroupThreads;
  static constexpr bool kAsyncCopies = kAsyncCopies_;
  static constexpr int kRows = 16 * kWarps;  // queries of a group
  static constexpr int kElements = 16 / int(sizeof(Storage));
  static_assert(kBlockKeys % 16 == 0 && kHeadDim % kElements == 0 && kValueDim % kElements == 0);

  // Rows in shared memory are padded with zeros to whole mma steps.
  static constexpr int kPaddedHead =
      (kHeadDim + 2 * kElements - 1) / (2 * kElements) * (2 * kElements);
  static constexpr int kPaddedValue = (kValueDim + 15) / 16 * 16;
  using LayoutK = SharedTile<kPaddedHead* int(sizeof(Storage))>;
  using LayoutV = SharedTile<kPaddedValue* int(sizeof(Storage))>;

  static constexpr int kBlocks = (kKeys + kBlockKeys - 1) / kBlockKeys;
  static constexpr int kTail = kKeys - (kBlocks - 1) * kBlockKeys;  // keys of the last block
  static constexpr int kTailTiles = (kTail + 7) / 8;
  static constexpr int kPaddedKeys = (kKeys + 15) / 16 * 16;
  static constexpr int kBytesQ = kRows * LayoutK::kRowBytes;
  static constexpr int kStageKeys = kBlocks == 1 ? kPaddedKeys : kBlockKeys;
  static constexpr int kBytesK = kStageKeys * LayoutK::kRowBytes,
                       kBytesV = kStageKeys * LayoutV::kRowBytes;
  static constexpr int kStages = kBlocks == 1 ? 1 : 2;
  static constexpr int kQueryTiles = (kQueries + kRows - 1) / kRows;
};

// The shared memory of one group.
template <class Tile, class Terms>
struct GroupMemory {
  static constexpr int kStageBytes = Tile::kBytesK + Tile::kBytesV;
  static constexpr int kLabels = Tile::kBytesQ + Tile::kStages * kStageBytes;
  static constexpr int kNorms = kLabels + (Terms::kRegions ? 4 * Tile::kPaddedKeys : 0);
  static constexpr int kEnd = kNorms + (Terms::kCosine ? 4 * (Tile::kRows + Tile::kStageKeys) : 0);
  static constexpr int kBytes = (kEnd + 127) / 128 * 128;

  char* q;
  VITC_DEVICE char* k(int b) const { return q + Tile::kBytesQ + b % Tile::kStages * kStageBytes; }
  VITC_DEVICE char* v(int b) const { return k(b) + Tile::kBytesK; }
  VITC_DEVICE int32_t* labels() const { return reinterpret_cast<int32_t*>(q + kLabels); }
  VITC_DEVICE float* query_norms() const { return reinterpret_cast<float*>(q + kNorms); }
  VITC_DEVICE float* key_norms() const { return query_norms() + Tile::kRows; }
};

// ---- copies
// -----------------------------------------------------------------------------------------------
// How many chunks a thread copies at once. The addresses of all of them outlive the loop over
// blocks, and three products a pair leave no registers for that.
template <class Policy>
constexpr int kCopiesAtOnce = 4;
template <>
inline constexpr int kCopiesAtOnce<Tf32x3> = 1;

// Rows [first, first + kRows) of a head, kWidth elements each, to a tile, by one group, of which
// the caller is thread `mine`. Rows from kLimit on and the padding of rows are zeros.
template <class Tile, class Layout, int kRows, int kWidth, int kLimit, class Heads>
VITC_DEVICE void copy_rows(char* tile, const Heads& from, int mine, int batch, int head,
                           int first) {
  constexpr int kTotal = kRows * Layout::kChunks, kElements = Tile::kElements;
  using S = typename Tile::Storage;
  VITC_UNROLL_BY(kCopiesAtOnce<typename Tile::Policy>)
  for (int step = 0; step < divide_up(kTotal, Tile::kGroupThreads); ++step) {
    const int i = step * Tile::kGroupThreads + mine;
    if (kTotal % Tile::kGroupThreads != 0 && i >= kTotal) break;
    const int row = i / Layout::kChunks, chunk = i % Layout::kChunks;
    // Evaluated for every row, so that what operands have in common is computed once.
    const int at = from.row(batch, minimum(first + row, kLimit - 1));
    const bool inside = at >= 0 && first + row < kLimit && chunk * kElements < kWidth;
    const S* address = from.data + (inside ? at + head * Heads::kHead + chunk * kElements : 0);
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
        largest = fmaxf(largest, fmaxf(scores[j][2 * half], scores[j][2 * half + 1]));
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

  // Stores out / sum to queries first + lane / 4 and 8 further; at[half]: where they begin, or -1.
  template <class Output>
  VITC_DEVICE void write(const Output& output, const int (&at)[2]) const {
    using T = typename Output::T;
    const int l = lane() % 4, odd = lane() % 2;
    VITC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const float inverse = fast_divide(1.f, warp_sum<4>(sum[half]));
      T* to = output.data + at[half];
      VITC_UNROLL
      for (int n = 0; n < kOut; n += 2) {
        float v[4] = {out[n][2 * half], out[n][2 * half + 1], out[n + 1][2 * half],
                      out[n + 1][2 * half + 1]};
        VITC_UNROLL
        for (int e = 0; e < 4; ++e) v[e] *= inverse;
        output.steps(v);
        if constexpr (sizeof(T) == 2) {
          // Neighbours swap a pair, so that four lanes write 32 bytes at once, a whole sector.
          const uint32_t low = pack<T>(v[0], v[1]), high = pack<T>(v[2], v[3]);
          const uint32_t got = shuffle_xor(odd ? low : high, 1);
          const uint32_t four[2] = {odd ? got : low, odd ? high : got};
          const int column = (n + odd) * 8 + (l - odd) * 2;
          if (at[half] >= 0 && column < Tile::kValueDim) {
            store<2>(reinterpret_cast<uint32_t*>(to + column), four);
          }
        } else {
          VITC_UNROLL
          for (int i = 0; i < 2; ++i) {
            const float two[2] = {v[2 * i], v[2 * i + 1]};
            const int column = (n + i) * 8 + l * 2;
            if (at[half] >= 0 && column < Tile::kValueDim) store_floats<2>(to + column, two);
          }
        }
      }
    }
  }
};

// ---- scores
// -----------------------------------------------------------------------------------------------
// What a warp's scores depend on besides the products.
template <class Tile, class Terms>
struct WarpScores {
  const Terms& terms;
  GroupMemory<Tile, Terms> memory;
  int head, first_row, first_query;  // rows: in the group; queries: in the sequence
  float scale;

  // Products with the keys from first_key on become scores. kLast: keys past the end are among
  // them.
  template <bool kLast, int kTiles, class Bias>
  VITC_DEVICE void finish(float (&scores)[kTiles][4], int first_key, const Bias& bias) const {
    const int l = fresh(lane()), g = l / 4, t = l % 4 * 2;
    float factor[2] = {scale, scale};
    if constexpr (Terms::kCosine) {
      VITC_UNROLL
      for (int half = 0; half < 2; ++half) {
        factor[half] *= memory.query_norms()[first_row + half * 8 + g];
      }
    }
    [[maybe_unused]] float two[8];
    VITC_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      const int key = j * 8 + t;
      if constexpr (Terms::kBias) {
        if (j % 2 == 0) bias.get(two, j / 2);
      }
      float norm[2] = {1, 1};
      if constexpr (Terms::kCosine) load<2>(norm, memory.key_norms() + key);
      VITC_UNROLL
      for (int e = 0; e < 4; ++e) {
        const float term = Terms::kBias ? two[j % 2 * 4 + e] : 0.f;
        float score = fmaf(scores[j][e] * norm[e % 2], factor[e / 2], term);
        if (kLast && (j + 1) * 8 > Tile::kTail && key + e % 2 >= Tile::kTail) score = -INFINITY;
        scores[j][e] = score;
      }
    }
    if constexpr (Terms::kRegions) part(scores, first_key);
  }

 private:
  // Adds `apart` where regions differ; most windows of an image have one region alone.
  template <int kTiles>
  VITC_DEVICE void part(float (&scores)[kTiles][4], int first_key) const {
    const int l = fresh(lane());
    const int32_t *labels = memory.labels(), *others = labels + first_key;
    int32_t label[2];
    VITC_UNROLL
    for (int half = 0; half < 2; ++half) {
      label[half] = labels[minimum(first_query + half * 8 + l / 4, Tile::kPaddedKeys - 1)];
    }
    const int32_t one = others[0];
    bool differs = label[0] != one || label[1] != one;
    VITC_UNROLL
    for (int i = 0; i < kTiles * 8; i += kWarp) {
      differs |= others[minimum(i + l, kTiles * 8 - 1)] != one;
    }
    if (ballot(differs) == 0) return;
    VITC_UNROLL
    for (int j = 0; j < kTiles; ++j) {
      int32_t other[2];
      load<2>(other, others + j * 8 + l % 4 * 2);
      VITC_UNROLL
      for (int e = 0; e < 4; ++e) {
        if (label[e / 2] != other[e % 2]) scores[j][e] += terms.regions.apart;
      }
    }
  }
};

// ---- the kernel
// -------------------------------------------------------------------------------------------
template <class Tile, int kHeads, class Query, class Key, class Value, class Terms, class Output>
VITC_KERNEL(Tile::kThreads, Tile::kResident)
attention_kernel(int batches, Query query, Key key, Value value, Terms terms, Output output) {
  using Policy = typename Tile::Policy;
  using LayoutK = typename Tile::LayoutK;
  using LayoutV = typename Tile::LayoutV;
  using Memory = GroupMemory<Tile, Terms>;
  const int group = warp() / Tile::kWarps, mine = thread() % Tile::kGroupThreads;
  const int wanted = block() / Tile::kQueryTiles * Tile::kGroups + group;
  const bool exists = Tile::kGroups == 1 || wanted < batches * kHeads;
  const int problem = exists ? wanted : 0;
  const int head = problem % kHeads, batch = problem / kHeads;
  const int group_query = block() % Tile::kQueryTiles * Tile::kRows;
  const int first_row = warp() % Tile::kWarps * 16, first_query = group_query + first_row;
  const bool active = first_query < Tile::kQueries;  // else it only copies
  const Memory memory{dynamic_shared<char>() + group * Memory::kBytes};
  const auto copy_block = [&](int b) {
    const int self = Tile::kBlocks == 1 ? mine : fresh(mine);
    copy_rows<Tile, LayoutK, Tile::kStageKeys, Tile::kHeadDim, Tile::kKeys>(
        memory.k(b), key, self, batch, head, b * Tile::kBlockKeys);
    copy_rows<Tile, LayoutV, Tile::kStageKeys, Tile::kValueDim, Tile::kKeys>(
        memory.v(b), value, self, batch, head, b * Tile::kBlockKeys);
  };
  const WarpScores<Tile, Terms> warp_scores{terms,     memory,      head,
                                            first_row, first_query, terms.scale_of(head)};
  wait_for_previous_kernel();
  let_next_kernel_start();
  AttentionRows<Tile> rows;
  rows.clear();

  // One block of keys, of which kTiles tiles of 8 are used. Copies in flight on entry: Q (the first
  // time), then K and V of block b.
  const auto use_block = [&](int b, auto tiles, auto last) {
    constexpr int kTiles = decltype(tiles)::value;
    constexpr bool kLast = decltype(last)::value;
    const int first_key = b * Tile::kBlockKeys;
    float scores[kTiles][4];
    const BiasOfLane<typename Terms::Bias, kTiles> bias(
        terms.bias, head, active ? first_query / 16 : 0, first_key / 16);
    if constexpr (Tile::kAsyncCopies) async_copy_wait<1>();  // K of block b
    sync_block();  // and everyone is done with block b - 1
    if constexpr (!kLast) copy_block(b + 1);
    if constexpr (Terms::kCosine) {
      using S = typename Tile::Storage;
      if (b == 0 && mine < Tile::kRows) {
        memory.query_norms()[mine] = inverse_norm<S, LayoutK>(memory.q, mine, terms.eps);
      }
      for (int i = mine; i < Tile::kStageKeys; i += Tile::kGroupThreads) {
        memory.key_norms()[i] = inverse_norm<S, LayoutK>(memory.k(b), i, terms.eps);
      }
      sync_block();
    }
    if (active) {
      query_times_key<Policy, LayoutK>(scores, memory.q, first_row, memory.k(b));
      warp_scores.template finish<kLast>(scores, first_key, bias);
      rows.softmax(scores);
    }
    if constexpr (Tile::kAsyncCopies) {
      async_copy_wait<kLast ? 0 : 2>();  // V of block b
      sync_block();
    }
    if (active) weights_times_value<Policy, LayoutV>(rows.out, scores, memory.v(b));
  };

  copy_rows<Tile, LayoutK, Tile::kRows, Tile::kHeadDim, Tile::kQueries>(memory.q, query, mine,
                                                                        batch, head, group_query);
  copy_block(0);
  if constexpr (Terms::kRegions) {
    VITC_UNROLL
    for (int i = 0; i < Tile::kPaddedKeys; i += Tile::kGroupThreads) {
      const int token = i + mine;
      const int32_t label = terms.regions.of(batch)[minimum(token, Tile::kKeys - 1)];
      if (token < Tile::kPaddedKeys) memory.labels()[token] = label;
    }
  }
  VITC_NO_UNROLL
  for (int b = 0; b < Tile::kBlocks - 1; ++b) use_block(b, Int<Tile::kBlockKeys / 8>{}, Int<0>{});
  use_block(Tile::kBlocks - 1, Int<Tile::kTailTiles>{}, Int<1>{});

  int at[2];
  VITC_UNROLL
  for (int half = 0; half < 2; ++half) {
    const int row = first_query + half * 8 + lane() / 4;
    const int begin = output.row(batch, minimum(row, Tile::kQueries - 1));
    const bool stored = exists && row < Tile::kQueries && begin >= 0;
    at[half] = stored ? begin + head * Output::kHead : -1;
  }
  rows.write(output, at);
}

// Launches the kernel for `batches` >= 1 entries of kHeads heads.
template <class Tile, int kHeads, class Query, class Key, class Value, class Terms, class Output>
int attention(const char* name, Stream stream, int batches, const Query& query, const Key& key,
              const Value& value, const Terms& terms, const Output& output) {
  const int blocks = divide_up(batches * kHeads, Tile::kGroups) * Tile::kQueryTiles;
  constexpr size_t kShared = Tile::kGroups * GroupMemory<Tile, Terms>::kBytes;
  return launch({name, Dim3(unsigned(blocks)), Tile::kThreads, kShared, stream},
                attention_kernel<Tile, kHeads, Query, Key, Value, Terms, Output>, batches, query,
                key, value, terms, output);
}

}  // namespace vitc::gpu
