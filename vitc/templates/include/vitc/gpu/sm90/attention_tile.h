// A configuration of Hopper's attention, its shared memory, and the units that blocks work on.
#pragma once

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

// A head's tiles of queries are cut into `groups` units of `unit_tiles` tiles (the last may have
// fewer). Units are numbered group by group, then head by head, then batch by batch; `step` is how
// far apart a block's units lie, in these digits: divisions would take longer than a tile's
// maximum.
struct AttentionPlan {
  int batches, heads, groups, unit_tiles;
  struct {
    int batch, head, group;
  } step;

  VITC_HOST_DEVICE static AttentionPlan make(int batches, int heads, int tiles, int unit_tiles,
                                             int blocks) {
    const int groups = divide_up(tiles, unit_tiles), items = blocks / groups;
    return {batches, heads, groups, unit_tiles, {items / heads, items % heads, blocks % groups}};
  }
};

// What a block works on at a time.
struct AttentionUnit {
  int batch, head, group;

  VITC_DEVICE static AttentionUnit first(const AttentionPlan& plan) {
    const int item = block() / plan.groups;
    return {item / plan.heads, item % plan.heads, block() % plan.groups};
  }
  VITC_DEVICE void next(const AttentionPlan& plan) {
    group += plan.step.group;
    const bool new_head = group >= plan.groups;
    if (new_head) group -= plan.groups;
    head += plan.step.head + new_head;
    const bool new_batch = head >= plan.heads;
    if (new_batch) head -= plan.heads;
    batch += plan.step.batch + new_batch;
  }
  VITC_DEVICE bool exists(const AttentionPlan& plan) const { return batch < plan.batches; }
  VITC_DEVICE int first_tile(const AttentionPlan& plan) const { return group * plan.unit_tiles; }
  template <class Tile>
  VITC_DEVICE int tiles(const AttentionPlan& plan) const {
    return minimum(plan.unit_tiles, Tile::kTiles - first_tile(plan));
  }
};

}  // namespace vitc::gpu::sm90
