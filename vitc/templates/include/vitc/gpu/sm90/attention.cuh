// out = softmax(scale Q K^T) V per (batch, head) on Hopper, straight from and to strided heads.
//
// One block a multiprocessor. It takes units: some tiles of 64 query rows of one head. One thread
// copies blocks of keys and values into a ring of stages, another one tiles of queries; consumer
// warpgroups take the tiles in turn. Scores stay in registers, as does what becomes of them: it is
// the A operand of the product with V, which is read transposed. The softmax is the online form
// (gpu/attention.cuh). A warpgroup has two sets of scores: while it makes weights of one, the
// product of the next block of keys with its tile, or with its next tile, fills the other.
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
                    panel * kTileDepth, Tile::first_key(b), unit.head, unit.batch,
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
  VITC_DEVICE Position<Tile> stage() const {
    Position<Tile> at;
    at.skip(blocks_before + block);
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
  using T = typename Tile::T;
  using Scores = float[Tile::kBlockKeys / 2];

  const AttentionMemory<Tile> memory;
  const AttentionPlan& plan;
  const Output& output;
  const int group;
  const float scale_log2;
  AttentionTurn<Tile> turn;
  QueryRows<Tile> rows;
  Scores scores[2];

  VITC_DEVICE Attention(const AttentionMemory<Tile>& memory_, const AttentionPlan& plan_,
                        const Output& output_, int group_, float scale_log2_)
      : memory(memory_),
        plan(plan_),
        output(output_),
        group(group_),
        scale_log2(scale_log2_),
        turn(group_, plan_) {}

  // Starts the product of a tile of queries with kKeys keys. (All but the last blocks are taken as
  // whole, so that one loop has them all; of the one before the last some scores may be ignored.)
  template <int kSet, int kKeys>
  VITC_DEVICE void begin_scores(const AttentionTurn<Tile>& at) {
    constexpr int kPadded = divide_up(kKeys, 16) * 16;
    float (&s)[kPadded / 2] = reinterpret_cast<float (&)[kPadded / 2]>(scores[kSet]);
    const int query = at.query() % Tile::kQuerySlots;
    const Position<Tile> stage = at.stage();
    if (at.block == 0) {
      barrier_wait(memory.query_full(query), unsigned(at.query() / Tile::kQuerySlots) & 1);
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
  // Waits until the scores are there, and lets go what was read for them and before them.
  template <int kSet, int kPending>
  VITC_DEVICE void await_scores(Position<Tile> stage) {
    products_wait<kPending>();
    products_use(scores[kSet]);
    products_use(rows.out);
    if (turn.last_tile()) {
      let_go(memory.empty(2 * stage.slot));
      const int before = stage.slot == 0 ? Tile::kStages - 1 : stage.slot - 1;
      if (turn.block > 0) let_go(memory.empty(2 * before + 1));
    }
  }
  // Makes weights of the scores of kKeys keys and starts their products with the values.
  template <int kSet, int kKeys>
  VITC_DEVICE void add_values(Position<Tile> stage) {
    constexpr int kSteps = divide_up(kKeys, 16);
    const auto& s = scores[kSet];
    if (turn.block == 0) rows.clear();
    rows.template raise<kKeys>(s, scale_log2, turn.block == 0);
    const int slot = 2 * stage.slot + 1;
    const uint64_t v = transposed_descriptor(memory.block_at(slot), Tile::kPanelBytes);
    VITC_UNROLL
    for (int first = 0; first < kSteps; first += kAtOnce) {
      uint32_t weights[kAtOnce][4];
      VITC_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kSteps; ++i) {
        rows.template weights<kKeys>(weights[i], s, first + i, scale_log2);
      }
      if (first == 0) barrier_wait(memory.full(slot), stage.parity);
      products_begin();
      VITC_UNROLL
      for (int i = 0; i < kAtOnce && first + i < kSteps; ++i) {
        RegisterProduct<T, Tile::kColumns>::multiply_add(
            rows.out, weights[i], v + uint64_t((first + i) * (16 * kTileBytes >> 4)));
      }
      products_commit();
    }
  }

  // A block of kKeys whose scores come in scores[kSet]; the next has kNextKeys. That all this is
  // known when compiling is what lets products run on over the end of a block.
  template <int kSet, int kKeys, int kNextKeys>
  VITC_DEVICE void use_block() {
    const Position<Tile> stage = turn.stage();
    AttentionTurn<Tile> next = turn;
    ++next.block;
    begin_scores<1 - kSet, kNextKeys>(next);
    await_scores<kSet, 1>(stage);
    add_values<kSet, kKeys>(stage);
    if constexpr (kBlocks > 2) {  // ptxas lets no product run on into a loop's next turn
      products_wait<0>();
      products_use(scores[1 - kSet]);
      products_use(rows.out);
    }
    turn = next;
  }
  // The last block of a tile. Whether another tile follows at once, which has its scores begun.
  VITC_DEVICE bool use_last_block() {
    const Position<Tile> stage = turn.stage();
    AttentionTurn<Tile> next = turn;
    next.next_tile(group, plan);
    const bool follows = next.unit.exists(plan) && next.has_tile();
    if (follows) {
      begin_scores<0, Tile::kBlockKeys>(next);
      await_scores<1, 1>(stage);
    } else {
      await_scores<1, 0>(stage);
    }
    let_go(memory.query_empty(turn.query() % Tile::kQuerySlots));
    add_values<1, Tile::kLastKeys>(stage);
    products_wait<0>();
    products_use(rows.out);
    if (turn.last_tile()) let_go(memory.empty(2 * stage.slot + 1));
    rows.write_out(turn.unit.batch, turn.unit.head, turn.unit.first_tile(plan) + turn.tile, output);
    turn = next;
    return follows;
  }
  VITC_DEVICE bool use_tile() {
    VITC_NO_UNROLL
    for (int b = 2; b < kBlocks; b += 2) {
      use_block<0, Tile::kBlockKeys, Tile::kBlockKeys>();
      use_block<1, Tile::kBlockKeys, Tile::kBlockKeys>();
    }
    use_block<0, Tile::kBeforeLastKeys, Tile::kLastKeys>();
    return use_last_block();
  }

  VITC_DEVICE void run() {
    VITC_NO_UNROLL
    while (turn.unit.exists(plan)) {
      if (!turn.has_tile()) {
        pass_over(memory, turn);
        turn.next_unit(group, plan);
        continue;
      }
      begin_scores<0, Tile::kBlockKeys>(turn);
      VITC_NO_UNROLL
      while (use_tile()) {
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
    Attention<Tile, Output>(memory, plan, output, thread() / kWarpgroup - 1, scale_log2).run();
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
