// out = softmax(scale Q K^T) V per (batch, head) on Hopper, straight from and to strided heads.
//
// One block a multiprocessor. It takes units: some tiles of 64 query rows of one head. One thread
// copies blocks of keys and values into a ring of stages, another one tiles of queries; consumer
// warpgroups take the tiles in turn. Scores stay in registers, as does what becomes of them: it is
// the A operand of the product with V, which is read transposed. Where one block holds all keys,
// the softmax sees whole rows; else it is the online form (gpu/attention.cuh). Blocks of keys stay
// where they are while a unit's tiles use them, and then the next unit's are copied; where the keys
// of a head have more blocks than there are stages, a unit has at most a tile for each warpgroup.
// Copies fill rows past the end with zeros; keys past the end are masked.
#pragma once

#include <algorithm>

#include "vitc/gpu/sm90/gemm.cuh"

namespace vitc::gpu::sm90 {

template <class T_, int kQueries_, int kKeys_, int kHeadDim_, int kBlockKeys_, int kStages_,
          int kQuerySlots_, int kConsumers_>
struct AttentionTile {
  using T = T_;
  static constexpr int kQueries = kQueries_, kKeys = kKeys_, kHeadDim = kHeadDim_;
  static constexpr int kBlockKeys = kBlockKeys_, kStages = kStages_, kConsumers = kConsumers_;
  static constexpr int kRows = 64, kTiles = divide_up(kQueries, kRows);
  static constexpr int kSteps = divide_up(kHeadDim, 16), kColumns = kSteps * 16;
  static constexpr int kPanels = divide_up(kHeadDim, kTileDepth);  // of 64 columns
  static constexpr int kBlocks = divide_up(kKeys, kBlockKeys);
  static constexpr int kLastKeys = kKeys - (kBlocks - 1) * kBlockKeys;
  static constexpr int kTail = divide_up(kLastKeys, 16) * 16;
  static constexpr int kPanelBytes = kBlockKeys * kTileBytes, kBlockBytes = kPanels * kPanelBytes;
  static constexpr int kQueryPanel = kRows * kTileBytes, kQueryBytes = kPanels * kQueryPanel;
  static constexpr int kQuerySlots = kQuerySlots_;
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kBarriers = 4 * kStages + 2 * kQuerySlots;
  static constexpr int kSharedBytes =
      2 * kStages * kBlockBytes + kQuerySlots * kQueryBytes + kBarriers * int(sizeof(Barrier));
  static constexpr bool kResident = kBlocks <= kStages;
  static_assert(kBlockKeys % 16 == 0 && kBlockKeys <= 256 && kHeadDim % 8 == 0);
  static_assert(kConsumers == 2 || kConsumers == 3);
};

// Slot 2 s holds keys of stage s, slot 2 s + 1 its values.
template <class Tile>
struct AttentionMemory {
  char* memory;

  VITC_DEVICE char* block_at(int slot) const { return memory + slot * Tile::kBlockBytes; }
  VITC_DEVICE char* query_at(int slot) const {
    return block_at(2 * Tile::kStages) + slot * Tile::kQueryBytes;
  }
  VITC_DEVICE Barrier* full(int slot) const {
    return reinterpret_cast<Barrier*>(query_at(Tile::kQuerySlots)) + slot;
  }
  VITC_DEVICE Barrier* empty(int slot) const { return full(2 * Tile::kStages + slot); }
  VITC_DEVICE Barrier* query_full(int slot) const { return full(4 * Tile::kStages + slot); }
  VITC_DEVICE Barrier* query_empty(int slot) const { return query_full(Tile::kQuerySlots + slot); }

  VITC_DEVICE void init() const {
    for (int slot = 0; slot < 2 * Tile::kStages; ++slot) {
      barrier_init(full(slot), 1);
      barrier_init(empty(slot), 4 * Tile::kConsumers);
    }
    for (int slot = 0; slot < Tile::kQuerySlots; ++slot) {
      barrier_init(query_full(slot), 1);
      barrier_init(query_empty(slot), 4);
    }
    barrier_init_done();
  }
};

// What a block works on at a time: some tiles of a head's queries.
struct AttentionUnit {
  int batch, head, first, tiles;
};
template <class Tile>
VITC_DEVICE AttentionUnit attention_unit(int unit, int heads, int unit_tiles) {
  const int groups = divide_up(Tile::kTiles, unit_tiles), item = unit / groups;
  const int first = unit % groups * unit_tiles;
  return {item / heads, item % heads, first, minimum(unit_tiles, Tile::kTiles - first)};
}

template <class Tile>
VITC_DEVICE void produce_keys(const AttentionMemory<Tile>& memory, const TensorMap* keys,
                              const TensorMap* values, int units, int heads, int unit_tiles) {
  wait_for_previous_kernel();
  Position<Tile> at;
  at.parity = 1;
  VITC_NO_UNROLL
  for (int u = block(); u < units; u += int(grid_size().x)) {
    const AttentionUnit unit = attention_unit<Tile>(u, heads, unit_tiles);
    VITC_NO_UNROLL
    for (int b = 0; b < Tile::kBlocks; ++b) {
      VITC_UNROLL
      for (int which = 0; which < 2; ++which) {
        const int slot = 2 * at.slot + which;
        barrier_wait(memory.empty(slot), at.parity);
        barrier_expect(memory.full(slot), Tile::kBlockBytes);
        for (int panel = 0; panel < Tile::kPanels; ++panel) {
          copy_head(memory.block_at(slot) + panel * Tile::kPanelBytes, which == 0 ? keys : values,
                    panel * kTileDepth, b * Tile::kBlockKeys, unit.head, unit.batch,
                    memory.full(slot));
        }
      }
      at.next();
    }
  }
  let_next_kernel_start();
}

template <class Tile>
VITC_DEVICE void produce_queries(const AttentionMemory<Tile>& memory, const TensorMap* queries,
                                 int units, int heads, int unit_tiles) {
  wait_for_previous_kernel();
  int slot = 0;
  unsigned parity = 1;
  VITC_NO_UNROLL
  for (int u = block(); u < units; u += int(grid_size().x)) {
    const AttentionUnit unit = attention_unit<Tile>(u, heads, unit_tiles);
    VITC_NO_UNROLL
    for (int tile = 0; tile < unit.tiles; ++tile) {
      barrier_wait(memory.query_empty(slot), parity);
      barrier_expect(memory.query_full(slot), Tile::kQueryBytes);
      for (int panel = 0; panel < Tile::kPanels; ++panel) {
        copy_head(memory.query_at(slot) + panel * Tile::kQueryPanel, queries, panel * kTileDepth,
                  (unit.first + tile) * Tile::kRows, unit.head, unit.batch,
                  memory.query_full(slot));
      }
      if (++slot == Tile::kQuerySlots) slot = 0, parity ^= 1;
    }
  }
}

// A warpgroup's 64 query rows. A thread has rows g and g + 8 of its warp's 16; of a product, the
// elements that wgmma.h says.
template <class Tile>
struct QueryRows {
  using T = typename Tile::T;
  float out[Tile::kColumns / 2], top[2], sum[2];  // top: the largest score so far, scaled

  VITC_DEVICE void clear() {
    VITC_UNROLL
    for (float& o : out) o = 0;
    VITC_UNROLL
    for (int h = 0; h < 2; ++h) top[h] = -INFINITY, sum[h] = 0;
  }

  // The new maximum of kKeys scores; what is there so far is rescaled to it.
  template <int kKeys, int kCount>
  VITC_DEVICE void raise(const float (&s)[kCount], float scale_log2) {
    VITC_UNROLL
    for (int h = 0; h < 2; ++h) {
      float some[2] = {-INFINITY, -INFINITY};  // two chains of fmaxf, which is one instruction
      VITC_UNROLL
      for (int j = 0; j < divide_up(kKeys, 8); ++j) {
        VITC_UNROLL
        for (int e = 0; e < 2; ++e) {
          const bool inside = j * 8 + 8 <= kKeys || j * 8 + lane() % 4 * 2 + e < kKeys;
          some[e] = fmaxf(some[e], inside ? s[4 * j + 2 * h + e] : -INFINITY);
        }
      }
      const float largest = fmaxf(top[h], warp_max<4>(fmaxf(some[0], some[1])) * scale_log2);
      if constexpr (Tile::kBlocks > 1) {
        const float kept = fast_exp2(top[h] - largest);
        sum[h] *= kept;
        VITC_UNROLL
        for (int i = 0; i < Tile::kColumns / 2; i += 4) {
          out[i + 2 * h] *= kept;
          out[i + 2 * h + 1] *= kept;
        }
      }
      top[h] = largest;
    }
  }

  // Keys [16 step, 16 step + 16) of the block as an operand: exp2(score - top), rounded.
  template <int kKeys, int kCount>
  VITC_DEVICE void weights(uint32_t (&a)[4], const float (&s)[kCount], int step, float scale_log2) {
    VITC_UNROLL
    for (int i = 0; i < 2; ++i) {
      const int j = 2 * step + i;
      VITC_UNROLL
      for (int h = 0; h < 2; ++h) {
        float p[2];
        VITC_UNROLL
        for (int e = 0; e < 2; ++e) {
          const bool inside = j * 8 + 8 <= kKeys || j * 8 + lane() % 4 * 2 + e < kKeys;
          p[e] = inside ? fast_exp2(fmaf(s[4 * j + 2 * h + e], scale_log2, -top[h])) : 0.f;
        }
        sum[h] += p[0] + p[1];
        a[2 * i + h] = pack<T>(p[0], p[1]);
      }
    }
  }

  // Four lanes that share a row trade their pairs of columns: each then has 16 bytes of one chunk.
  static VITC_DEVICE void trade(uint32_t (&x)[4]) {
    const bool odd = lane() % 2 != 0, upper = lane() / 2 % 2 != 0;
    const uint32_t r0 = shuffle_xor(upper ? x[0] : x[2], 2),
                   r1 = shuffle_xor(upper ? x[1] : x[3], 2);
    const uint32_t low0 = upper ? r0 : x[0], low1 = upper ? r1 : x[1];
    const uint32_t high0 = upper ? x[2] : r0, high1 = upper ? x[3] : r1;
    const uint32_t low = shuffle_xor(odd ? low0 : low1, 1),
                   high = shuffle_xor(odd ? high0 : high1, 1);
    x[0] = odd ? low : low0;
    x[1] = odd ? low1 : low;
    x[2] = odd ? high : high0;
    x[3] = odd ? high1 : high;
  }

  template <class Output>
  VITC_DEVICE void write_out(const AttentionUnit& unit, int tile, const Output& output) {
    VITC_UNROLL
    for (int h = 0; h < 2; ++h) {
      const float inverse = 1.f / warp_sum<4>(sum[h]);
      const int row = tile * Tile::kRows + thread() % kWarpgroup / kWarp * 16 + h * 8 + lane() / 4;
      T* to = output.row(unit.batch, unit.head, row);
      VITC_UNROLL
      for (int j = 0; j < Tile::kColumns / 8; j += 4) {
        uint32_t x[4] = {};
        VITC_UNROLL
        for (int i = 0; i < 4 && j + i < Tile::kColumns / 8; ++i) {
          x[i] =
              pack<T>(out[4 * (j + i) + 2 * h] * inverse, out[4 * (j + i) + 2 * h + 1] * inverse);
        }
        trade(x);
        const int column = (j + lane() % 4) * 8;
        if (row < Tile::kQueries && column < Tile::kHeadDim) {
          store<4>(reinterpret_cast<uint32_t*>(to + column), x);
        }
      }
    }
  }
};

template <class Tile, class Output>
VITC_DEVICE void attend(const AttentionMemory<Tile>& memory, int group, int units, int heads,
                        int unit_tiles, float scale_log2, const Output& output) {
  using T = typename Tile::T;
  constexpr int kAtOnce = 4;  // steps of 16 keys whose products go together
  const auto release = [&](Barrier* barrier) {
    if (lane() == 0) barrier_arrive(barrier);
  };
  int tiles_before = 0, blocks_before = 0;
  VITC_NO_UNROLL
  for (int u = block(); u < units; u += int(grid_size().x)) {
    const AttentionUnit unit = attention_unit<Tile>(u, heads, unit_tiles);
    int tile = (group + Tile::kConsumers - tiles_before % Tile::kConsumers) % Tile::kConsumers;
    if (tile >= unit.tiles) {  // nothing to do, but the stages want to be let go in their turn
      VITC_NO_UNROLL
      for (int b = 0; b < Tile::kBlocks; ++b) {
        Position<Tile> at;
        at.skip(blocks_before + b);
        for (int slot = 2 * at.slot; slot < 2 * at.slot + 2; ++slot) {
          barrier_wait(memory.full(slot), at.parity);
          sync_warp();  // no product follows that would wait for the other lanes
          release(memory.empty(slot));
        }
      }
    }
    VITC_NO_UNROLL
    for (; tile < unit.tiles; tile += Tile::kConsumers) {
      const bool last_tile = tile + Tile::kConsumers >= unit.tiles;
      const int query = (tiles_before + tile) % Tile::kQuerySlots;
      barrier_wait(memory.query_full(query),
                   unsigned((tiles_before + tile) / Tile::kQuerySlots) & 1);
      QueryRows<Tile> rows;
      rows.clear();
      int before = -1;  // slot of the values of the block before
      const auto use_block = [&](int b, auto padded, auto real) {
        constexpr int kPadded = decltype(padded)::value, kReal = decltype(real)::value;
        Position<Tile> at;
        at.skip(blocks_before + b);
        const int key_slot = 2 * at.slot, value_slot = key_slot + 1;
        float s[kPadded / 2];
        barrier_wait(memory.full(key_slot), at.parity);
        const uint64_t q = tile_descriptor(memory.query_at(query));
        const uint64_t k = tile_descriptor(memory.block_at(key_slot));
        products_begin();
        VITC_UNROLL
        for (int step = 0; step < Tile::kSteps; ++step) {
          const int panel = step / 4, inner = step % 4 * int(kNextColumns);
          const uint64_t a = q + uint64_t(panel * (Tile::kQueryPanel >> 4) + inner);
          const uint64_t w = k + uint64_t(panel * (Tile::kPanelBytes >> 4) + inner);
          if (step == 0) {
            Product<T, kPadded>::multiply_first(s, a, w);
          } else {
            Product<T, kPadded>::multiply_add(s, a, w);
          }
        }
        products_commit();
        products_wait<0>();  // of the block before too
        products_use(s);
        products_use(rows.out);
        if (last_tile) {
          release(memory.empty(key_slot));
          if (before >= 0) release(memory.empty(before));
        }
        before = value_slot;
        if (b == Tile::kBlocks - 1) release(memory.query_empty(query));
        rows.template raise<kReal>(s, scale_log2);
        barrier_wait(memory.full(value_slot), at.parity);
        const uint64_t v = transposed_descriptor(memory.block_at(value_slot), Tile::kPanelBytes);
        VITC_UNROLL
        for (int first = 0; first < kPadded / 16; first += kAtOnce) {
          uint32_t weights[kAtOnce][4];
          VITC_UNROLL
          for (int i = 0; i < kAtOnce && first + i < kPadded / 16; ++i) {
            rows.template weights<kReal>(weights[i], s, first + i, scale_log2);
          }
          products_begin();
          VITC_UNROLL
          for (int i = 0; i < kAtOnce && first + i < kPadded / 16; ++i) {
            RegisterProduct<T, Tile::kColumns>::multiply_add(
                rows.out, weights[i], v + uint64_t((first + i) * (16 * kTileBytes >> 4)));
          }
          products_commit();
        }
      };
      VITC_NO_UNROLL
      for (int b = 0; b < Tile::kBlocks - 1; ++b) {
        use_block(b, Int<Tile::kBlockKeys>{}, Int<Tile::kBlockKeys>{});
      }
      use_block(Tile::kBlocks - 1, Int<Tile::kTail>{}, Int<Tile::kLastKeys>{});
      products_wait<0>();
      products_use(rows.out);
      if (last_tile) release(memory.empty(before));
      rows.write_out(unit, unit.first + tile, output);
    }
    tiles_before += unit.tiles;
    blocks_before += Tile::kBlocks;
  }
}

template <class Tile, class Output>
VITC_KERNEL(Tile::kThreads, 1)
attention_kernel(int units, int heads, int unit_tiles, float scale_log2,
                 const __grid_constant__ TensorMap queries, const __grid_constant__ TensorMap keys,
                 const __grid_constant__ TensorMap values, Output output) {
  const AttentionMemory<Tile> memory{dynamic_shared<char>()};
  if (thread() == 0) {
    prefetch_map(&queries);
    prefetch_map(&keys);
    prefetch_map(&values);
    memory.init();
  }
  sync_block();
  if (thread() < kWarpgroup) {
    give_back_registers<Tile::kConsumers == 2 ? 24 : 32>();
    if (thread() == 0) produce_keys<Tile>(memory, &keys, &values, units, heads, unit_tiles);
    if (thread() == kWarp) produce_queries<Tile>(memory, &queries, units, heads, unit_tiles);
  } else {
    take_registers<Tile::kConsumers == 2 ? 240 : 160>();
    attend<Tile>(memory, thread() / kWarpgroup - 1, units, heads, unit_tiles, scale_log2, output);
  }
}

// Tiles of a unit: the fewest rounds of the busiest block, then little reading of keys.
template <class Tile>
int attention_unit_tiles(int items) {
  int best = 1;
  double least = 1e30;
  for (int tiles = 1; tiles <= Tile::kTiles; ++tiles) {
    if (!Tile::kResident && tiles > Tile::kConsumers) break;
    const int each = divide_up(items * divide_up(Tile::kTiles, tiles), multiprocessors());
    const double cost =
        divide_up(each * tiles, Tile::kConsumers) + 0.1 * each * tiles + 0.15 * each;
    if (cost < least) best = tiles, least = cost;
  }
  return best;
}

template <class T, int kBatchStride, int kHeadStride, int kRowStride>
struct HeadRows {
  T* data;
  VITC_DEVICE T* row(int batch, int head, int row) const {
    return data + batch * kBatchStride + head * kHeadStride + row * kRowStride;
  }
};

// Launches the kernel for batch >= 1; `scale` > 0 multiplies Q K^T.
template <class Tile, class Output>
int attention(const char* name, Stream stream, int batch, int heads,
              const Heads<typename Tile::T>& queries, const Heads<typename Tile::T>& keys,
              const Heads<typename Tile::T>& values, const Output& output, float scale) {
  TensorMap q, k, v;
  int status = encode_heads(&q, queries, batch, heads, Tile::kQueries, Tile::kHeadDim, Tile::kRows);
  if (status == 0)
    status = encode_heads(&k, keys, batch, heads, Tile::kKeys, Tile::kHeadDim, Tile::kBlockKeys);
  if (status == 0)
    status = encode_heads(&v, values, batch, heads, Tile::kKeys, Tile::kHeadDim, Tile::kBlockKeys);
  if (status != 0) return status;
  const int unit_tiles = attention_unit_tiles<Tile>(batch * heads);
  const int units = batch * heads * divide_up(Tile::kTiles, unit_tiles);
  const LaunchShape shape{name, Dim3(unsigned(std::min(units, multiprocessors()))), Tile::kThreads,
                          size_t(Tile::kSharedBytes), stream};
  return launch_clusters(shape, 1, VITC_OVERLAP, attention_kernel<Tile, Output>, units, heads,
                         unit_tiles, scale * 1.44269504088896341f, q, k, v, output);
}

}  // namespace vitc::gpu::sm90
