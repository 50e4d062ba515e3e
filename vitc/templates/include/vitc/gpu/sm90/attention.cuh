// out = softmax(scale Q K^T) V per (batch, head) on Hopper, straight from and to strided heads.
//
// One block a multiprocessor. It takes units: some tiles of 64 query rows of one head. One thread
// copies blocks of keys and values into a ring of stages, another one tiles of queries; consumer
// warpgroups take the tiles in turn. Scores stay in registers, as does what becomes of them: it is
// the A operand of the product with V, which is read transposed. The softmax is the online form
// (gpu/attention.cuh). When a block's scores have become weights, the product of the next block of
// keys, or, where there is but one block, of the next tile, takes their registers.
// Blocks of keys stay where they are while a unit's tiles use them, and then the next unit's are
// copied; where the keys of a head have more blocks than there are stages, a unit has at most a
// tile for each warpgroup. Copies fill rows past the end with zeros; keys past the end are masked.
#pragma once

#include <algorithm>

#include "vitc/gpu/sm90/attention_rows.h"

namespace vitc::gpu::sm90 {

template <class Tile>
VITC_DEVICE void produce_keys(const AttentionMemory<Tile>& memory, const TensorMap* keys,
                              const TensorMap* values, const AttentionPlan& plan) {
  wait_for_previous_kernel();
  Position<Tile> at;
  at.parity = 1;
  VITC_NO_UNROLL
  for (auto unit = AttentionUnit::first(plan); unit.exists(plan); unit.next(plan)) {
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
                                 const AttentionPlan& plan) {
  wait_for_previous_kernel();
  int slot = 0;
  unsigned parity = 1;
  VITC_NO_UNROLL
  for (auto unit = AttentionUnit::first(plan); unit.exists(plan); unit.next(plan)) {
    const int first = unit.first_tile(plan), tiles = unit.tiles<Tile>(plan);
    VITC_NO_UNROLL
    for (int tile = first; tile < first + tiles; ++tile) {
      barrier_wait(memory.query_empty(slot), parity);
      barrier_expect(memory.query_full(slot), Tile::kQueryBytes);
      for (int panel = 0; panel < Tile::kPanels; ++panel) {
        copy_head(memory.query_at(slot) + panel * Tile::kQueryPanel, queries, panel * kTileDepth,
                  tile * Tile::kRows, unit.head, unit.batch, memory.query_full(slot));
      }
      if (++slot == Tile::kQuerySlots) slot = 0, parity ^= 1;
    }
  }
}

// Where a consumer warpgroup is: a block of keys for one of its tiles of a unit. It has no tile of
// a unit that has fewer than there are warpgroups.
template <class Tile>
struct AttentionTurn {
  AttentionUnit unit;
  int tiles, tile, block = 0;  // tiles of the unit; its own one
  int lead = 0;                // the warpgroup that takes the unit's first tile
  int tiles_before = 0, blocks_before = 0;

  VITC_DEVICE AttentionTurn(int group, const AttentionPlan& plan)
      : unit(AttentionUnit::first(plan)), tiles(unit.tiles<Tile>(plan)), tile(group) {}

  VITC_DEVICE bool has_tile() const { return tile < tiles; }
  VITC_DEVICE bool last_tile() const { return tile + Tile::kConsumers >= tiles; }
  VITC_DEVICE int query() const { return tiles_before + tile; }
  // That of the block, or of another one.
  VITC_DEVICE Position<Tile> stage(int further = 0) const {
    Position<Tile> at;
    at.skip(blocks_before + block + further);
    return at;
  }

  VITC_DEVICE void next_unit(int group, const AttentionPlan& plan) {
    tiles_before += tiles;
    blocks_before += Tile::kBlocks;
    lead = (lead + tiles) % Tile::kConsumers;
    tile = (group + Tile::kConsumers - lead) % Tile::kConsumers;
    block = 0;
    unit.next(plan);
    tiles = unit.tiles<Tile>(plan);
  }
  VITC_DEVICE void next_tile(int group, const AttentionPlan& plan) {
    block = 0;
    tile += Tile::kConsumers;
    if (!has_tile()) next_unit(group, plan);
  }
};

// One lane of each warp says that a slot may be filled anew.
VITC_DEVICE void let_go(Barrier* empty) {
  if (lane() == 0) barrier_arrive(empty);
}

// A unit of which the warpgroup has no tile: its stages want to be let go in their turn.
template <class Tile>
VITC_DEVICE void pass_over(const AttentionMemory<Tile>& memory, AttentionTurn<Tile> turn) {
  VITC_NO_UNROLL
  for (turn.block = 0; turn.block < Tile::kBlocks; ++turn.block) {
    const auto at = turn.stage();
    for (int slot = 2 * at.slot; slot < 2 * at.slot + 2; ++slot) {
      barrier_wait(memory.full(slot), at.parity);
      sync_warp();  // no product follows that would wait for the other lanes
      let_go(memory.empty(slot));
    }
  }
}

// A consumer warpgroup at work on its tiles.
template <class Tile, class Output>
struct Attention {
  static constexpr int kBlocks = Tile::kBlocks, kAtOnce = 4;  // steps whose products go together
  static constexpr int kFirstPadded = kBlocks > 1 ? Tile::kBlockKeys : Tile::kTail;
  using T = typename Tile::T;
  using Turn = AttentionTurn<Tile>;

  const AttentionMemory<Tile> memory;
  const AttentionPlan& plan;
  const Output& output;
  const int group;
  const float scale_log2;
  Turn turn;
  QueryRows<Tile> rows;
  float scores[kFirstPadded / 2];

  VITC_DEVICE Attention(const AttentionMemory<Tile>& memory_, const AttentionPlan& plan_,
                        const Output& output_, int group_, float scale_log2_)
      : memory(memory_),
        plan(plan_),
        output(output_),
        group(group_),
        scale_log2(scale_log2_),
        turn(group_, plan_) {}

  // Starts the product of a tile of queries with a block of kPadded keys.
  template <int kPadded>
  VITC_DEVICE void begin_scores() {
    float (&s)[kPadded / 2] = reinterpret_cast<float (&)[kPadded / 2]>(scores);
    const int query = turn.query() % Tile::kQuerySlots;
    const Position<Tile> stage = turn.stage();
    if (turn.block == 0) {
      barrier_wait(memory.query_full(query), unsigned(turn.query() / Tile::kQuerySlots) & 1);
    }
    barrier_wait(memory.full(2 * stage.slot), stage.parity);
    const uint64_t q = tile_descriptor(memory.query_at(query));
    const uint64_t k = tile_descriptor(memory.block_at(2 * stage.slot));
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
  }

  VITC_DEVICE void await_products() {
    products_wait<0>();
    products_use(scores);
    products_use(rows.out);
  }

  // Makes weights of the scores of kKeys keys, once they are there, and begins their products with
  // the values.
  template <int kKeys>
  VITC_DEVICE void use_scores() {
    constexpr int kSteps = divide_up(kKeys, 16);
    const Position<Tile> stage = turn.stage();
    const bool first_block = kBlocks == 1 || turn.block == 0;
    await_products();
    if (turn.last_tile()) {
      let_go(memory.empty(2 * stage.slot));
      if (!first_block) let_go(memory.empty(2 * turn.stage(-1).slot + 1));
    }
    if (first_block) rows.clear();
    rows.template raise<kKeys>(scores, scale_log2, first_block);
    const int slot = 2 * stage.slot + 1;
    barrier_wait(memory.full(slot), stage.parity);
    const uint64_t v = transposed_descriptor(memory.block_at(slot), Tile::kPanelBytes);
    VITC_UNROLL
    for (int first = 0; first < kSteps; first += kAtOnce) {
      uint32_t weights[kAtOnce][4];
      VITC_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kSteps; ++i) {
        rows.template weights<kKeys>(weights[i], scores, first + i, scale_log2);
      }
      products_begin();
      VITC_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kSteps; ++i) {
        RegisterProduct<T, Tile::kColumns>::multiply_add(
            rows.out, weights[i], v + uint64_t((first + i) * (16 * kTileBytes >> 4)));
      }
      products_commit();
    }
  }

  // The last block of a tile, and what comes out of it.
  template <class Between>
  VITC_DEVICE void finish_tile(const Between& before_writing) {
    use_scores<Tile::kLastKeys>();
    let_go(memory.query_empty(turn.query() % Tile::kQuerySlots));
    await_products();
    if (turn.last_tile()) let_go(memory.empty(2 * turn.stage().slot + 1));
    const AttentionUnit unit = turn.unit;
    const int tile = unit.first_tile(plan) + turn.tile;
    turn.next_tile(group, plan);
    before_writing();
    rows.write_out(unit.batch, unit.head, tile, output);
  }
  VITC_DEVICE bool follows() const { return turn.unit.exists(plan) && turn.has_tile(); }

  // The tiles up to a unit that has none for this warpgroup. Scores of a next block are begun
  // behind the products with values. Where there is but one, those of the next tile are begun
  // before this one is written out. (With more blocks that takes more registers than there are.)
  VITC_DEVICE void use_tiles() {
    if constexpr (kBlocks == 1) {
      begin_scores<Tile::kTail>();
      VITC_NO_UNROLL
      while (follows()) {
        finish_tile([&] {
          if (follows()) begin_scores<Tile::kTail>();
        });
      }
    } else {
      VITC_NO_UNROLL
      while (follows()) {
        VITC_NO_UNROLL
        for (; turn.block < kBlocks - 1; ++turn.block) {
          begin_scores<Tile::kBlockKeys>();
          use_scores<Tile::kBlockKeys>();
        }
        begin_scores<Tile::kTail>();
        finish_tile([] {});
      }
    }
  }

  VITC_DEVICE void run() {
    VITC_NO_UNROLL
    while (turn.unit.exists(plan)) {
      if (turn.has_tile()) {
        use_tiles();
      } else {
        pass_over(memory, turn);
        turn.next_unit(group, plan);
      }
    }
  }
};

template <class Tile, class Output>
VITC_KERNEL(Tile::kThreads, 1)
attention_kernel(const __grid_constant__ AttentionPlan plan, float scale_log2,
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
    if (thread() == 0) produce_keys<Tile>(memory, &keys, &values, plan);
    if (thread() == kWarp) produce_queries<Tile>(memory, &queries, plan);
  } else {
    take_registers<Tile::kConsumers == 2 ? 240 : 160>();
    Attention<Tile, Output>(memory, plan, output, warpgroup() - 1, scale_log2).run();
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
  const int blocks = std::min(units, multiprocessors());
  const auto plan = AttentionPlan::make(batch, heads, Tile::kTiles, unit_tiles, blocks);
  const LaunchShape shape{name, Dim3(unsigned(blocks)), Tile::kThreads, size_t(Tile::kSharedBytes),
                          stream};
  return launch_clusters(shape, 1, VITC_OVERLAP, attention_kernel<Tile, Output>, plan,
                         scale * 1.44269504088896341f, q, k, v, output);
}

}  // namespace vitc::gpu::sm90
