// What happens to the scores of attention between the two products: per-head factors, the cosine
// form's norms, biases, and the mask regions of shifted windows. Scores are in units of log2 from
// here on, so biases come multiplied by log2(e).
#pragma once

#include "vitc/gpu/device.h"
#include "vitc/gpu/tile.h"

namespace vitc::gpu {

// A term that an attention does not have.
struct Absent {
  static constexpr bool kPresent = false;
  using T = float;
  VITC_DEVICE void load_two(float (&)[8], int, int, int) const {}
};

// Biases in the order in which lanes hold scores: [kHeads][kQueryTiles][kKeyTiles][lane][8], where
// a query tile is 16 queries, a key tile 16 keys, and a lane's eight are those of two mma results.
// kHeads may be 1. What stands in the padding does not matter, except that it must be no NaN.
template <class T_, int kHeads, int kQueryTiles, int kKeyTiles>
struct BiasTable {
  static constexpr bool kPresent = true;
  using T = T_;
  const T* table;
  // Those of tiles 2 key_tile and 2 key_tile + 1 of 8 keys, as they follow in scores[][4].
  VITC_DEVICE void load_two(T (&v)[8], int head, int query_tile, int key_tile) const {
    const int tile = ((kHeads == 1 ? 0 : head) * kQueryTiles + query_tile) * kKeyTiles + key_tile;
    load<8>(v, table + (tile * kWarp + fresh(lane())) * 8);
  }
};

// A lane's biases for kTiles tiles of 8 keys. Where they are few, they are fetched before the
// copies are waited for, else when they are added.
template <class Bias, int kTiles>
class BiasOfLane {
 public:
  VITC_DEVICE BiasOfLane(const Bias& bias, int head, int query_tile, int key_tile)
      : bias_(bias), head_(head), query_tile_(query_tile), key_tile_(key_tile) {
    if constexpr (kEarly) {
      VITC_UNROLL
      for (int p = 0; p < kPairs; ++p) bias.load_two(held_[p], head, query_tile, key_tile + p);
    }
  }
  VITC_DEVICE void get(float (&v)[8], int pair) const {
    typename Bias::T late[8];
    if constexpr (!kEarly) bias_.load_two(late, head_, query_tile_, key_tile_ + pair);
    VITC_UNROLL
    for (int i = 0; i < 8; ++i) v[i] = to_float(kEarly ? held_[pair][i] : late[i]);
  }

 private:
  static constexpr int kPairs = (kTiles + 1) / 2;
  static constexpr bool kEarly = Bias::kPresent && kTiles <= 8 && sizeof(typename Bias::T) == 2;
  const Bias& bias_;
  int head_, query_tile_, key_tile_;
  typename Bias::T held_[kEarly ? kPairs : 1][8];
};

// Labels [kWindows][kTokens]; batch entry b is window b % kWindows. `apart` is added to the score
// of two tokens whose labels differ.
template <int kWindows, int kTokens>
struct Regions {
  static constexpr bool kPresent = true;
  const int32_t* labels;
  float apart;
  VITC_DEVICE const int32_t* of(int batch) const { return labels + batch % kWindows * kTokens; }
};

template <class T>
struct HeadFactors {
  static constexpr bool kPresent = true;
  const T* factors;
};

// kCosine: rows of q and k count as divided by max(norm, eps). scale: in units of log2.
template <bool kCosine_, class Bias_, class Regions_, class Factors_>
struct ScoreTerms {
  using Bias = Bias_;
  static constexpr bool kCosine = kCosine_, kBias = Bias::kPresent;
  static constexpr bool kRegions = Regions_::kPresent, kFactors = Factors_::kPresent;
  float scale, eps;
  Bias bias;
  Regions_ regions;
  Factors_ factors;

  VITC_DEVICE float scale_of(int head) const {
    if constexpr (kFactors) return scale * to_float(factors.factors[head]);
    return scale;
  }
};

// 1 / max(norm, eps) of a row of a tile in shared memory, whose padding is zeros.
template <class Storage, class Layout>
VITC_DEVICE float inverse_norm(const char* tile, int row, float eps) {
  constexpr int kElements = 16 / int(sizeof(Storage));
  float sum = 0;
  VITC_UNROLL
  for (int chunk = 0; chunk < Layout::kChunks; ++chunk) {
    float v[kElements];
    load_floats<kElements>(v, reinterpret_cast<const Storage*>(tile + Layout::offset(row, chunk)));
    VITC_UNROLL
    for (int e = 0; e < kElements; ++e) sum = fmaf(v[e], v[e], sum);
  }
  return 1.f / maximum(sqrtf(sum), eps);
}

}  // namespace vitc::gpu
