// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) on Hopper, for many rows.
//
// One block a multiprocessor. A producer thread copies tiles of A and W into a ring of stages;
// consumer warpgroups multiply them and pass their sums through the epilogue. Blocks (or clusters
// of them) take tiles in turn, columns fastest, so that those at work at a time share few rows of A
// and all of W in L2. While a warpgroup is in its epilogue the other one multiplies (ping-pong),
// and the producer runs ahead into the next tile in any case.
#pragma once

#include <algorithm>

#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tile.h"

namespace vitc::gpu::sm90 {

template <class Tile, int kN>
struct Raster {
  static constexpr int kTilesN = (kN + Tile::kColumns - 1) / Tile::kColumns;

  // Tiles of a cluster: its blocks lie one below the other and have their columns in common.
  static VITC_HOST_DEVICE int tiles(int m) {
    const int rows = Tile::kTileRows * Tile::kCluster;
    return (m + rows - 1) / rows * kTilesN;
  }
  // The tile that is worked on as number `index`.
  static VITC_DEVICE int tile(int index, int tiles) {
    return Tile::kBackwards ? tiles - 1 - index : index;
  }
  static VITC_DEVICE int row(int tile, int rank) {
    return (tile / kTilesN * Tile::kCluster + rank) * Tile::kTileRows;
  }
  static VITC_DEVICE int column(int tile) { return tile % kTilesN * Tile::kColumns; }
};

// Copies the tiles of A and W for all steps of all tiles; one thread.
template <class Tile, int kN, int kK>
VITC_DEVICE void produce(const Ring<Tile>& ring, const TensorMap* map_a, const TensorMap* map_w,
                         int first, int stride, int tiles, int rank) {
  using Where = Raster<Tile, kN>;
  constexpr int kSteps = (kK + kTileDepth - 1) / kTileDepth;
  const auto copy_weights = [&](int slot, int step, int column) {
    Barrier* full = ring.full(slot);
    barrier_expect(full, Tile::kBytesA + Tile::kBytesB);
    if constexpr (Tile::kCluster == 1) {
      copy_tile(ring.tile_b(slot), map_w, step * kTileDepth, column, full);
    } else {  // each block copies its part for all
      constexpr int kPart = Tile::kColumns / Tile::kCluster;
      copy_tile_to(ring.tile_b(slot) + rank * kPart * kTileBytes, map_w, step * kTileDepth,
                   column + rank * kPart, full, (1 << Tile::kCluster) - 1);
    }
  };

  // Weights are there before earlier kernels have ended, A is not.
  constexpr int kAhead = kSteps < Tile::kStages ? kSteps : Tile::kStages;
  VITC_NO_UNROLL
  for (int step = 0; step < kAhead; ++step)
    copy_weights(step, step, Where::column(Where::tile(first, tiles)));
  wait_for_previous_kernel();

  int ahead = kAhead;
  Position<Tile> at;
  at.parity = 1;
  VITC_NO_UNROLL
  for (int index = first; index < tiles; index += stride) {
    const int tile = Where::tile(index, tiles);
    const int row = Where::row(tile, rank), column = Where::column(tile);
    VITC_NO_UNROLL
    for (int step = 0; step < kSteps; ++step) {
      if (ahead > 0) {
        --ahead;
      } else {
        barrier_wait(ring.empty(at.slot), at.parity);
        copy_weights(at.slot, step, column);
      }
      copy_tile(ring.tile_a(at.slot), map_a, step * kTileDepth, row, ring.full(at.slot));
      at.next();
    }
  }
  let_next_kernel_start();
}

// What the epilogue of a tile needs from memory is fetched while the tile is multiplied: scales of
// its rows into shared memory, operands such as a residual into L2. Tiles alternate between two
// slots; `started` says that a tile's products have begun (before that, the copies of A and W
// should have the memory to themselves) and that the slot is free, `ready` that its scales are
// there.
template <class Tile>
struct Handover {
  Barrier* memory;
  static constexpr int kWarps = 3;  // the producer's idle ones

  VITC_DEVICE Barrier* started(int index) const { return memory + index % 2; }
  VITC_DEVICE Barrier* ready(int index) const { return memory + 2 + index % 2; }
  VITC_DEVICE float* scales(int index) const {
    return reinterpret_cast<float*>(memory + 4) + index % 2 * Tile::kTileRows;
  }
  VITC_DEVICE void init() const {
    for (int slot = 0; slot < 2; ++slot) {
      barrier_init(started(slot), 4 * (Tile::kPingPong ? 1 : Tile::kConsumers));
      barrier_init(ready(slot), kWarps);
    }
  }
  static VITC_DEVICE unsigned parity(int index) { return unsigned(index / 2) & 1; }
};

template <class Epilogue>
constexpr bool kHandsOver = Epilogue::kRowScale || Epilogue::kOperands;

// Warps 1 to 3 of the producer's warpgroup.
template <class Tile, int kN, int kSteps, class Epilogue>
VITC_DEVICE void fetch_for_epilogue(const Handover<Tile>& handover, int m, int first, int stride,
                                    int tiles, int rank, const Epilogue& epilogue) {
  using Where = Raster<Tile, kN>;
  constexpr int kThreads = Handover<Tile>::kWarps * kWarp;
  const int me = thread() - kWarp;
  wait_for_previous_kernel();
  VITC_NO_UNROLL
  for (int index = 0;; ++index) {
    const int number = first + index * stride;
    if (number >= tiles) break;
    const int tile = Where::tile(number, tiles);
    const int first_m = Where::row(tile, rank), first_n = Where::column(tile);
    barrier_wait(handover.started(index), handover.parity(index));
    if constexpr (Epilogue::kRowScale) {
      VITC_NO_UNROLL
      for (int r = me; r < Tile::kTileRows; r += kThreads) {
        handover.scales(index)[r] = epilogue.row_scale(minimum(first_m + r, m - 1));
      }
    }
    // The last tile of a warpgroup has no other one's products to hide its epilogue behind.
    const bool last = number + stride * (Tile::kPingPong ? 2 : 1) >= tiles;
    if (Epilogue::kOperands && (Tile::kFetch || last)) {
      const int columns = minimum(Tile::kColumns, kN - first_n);
      // A few rows at a time over half of the main loop: at once, they would hold up the copies of
      // A.
      constexpr int kRows = 8, kPieces = Tile::kTileRows / kRows;
      constexpr int kClocks = kSteps * Tile::kTileRows * Tile::kColumns * kTileDepth / 2048;
      constexpr int kPause = kClocks / 3 * Handover<Tile>::kWarps / kPieces;
      VITC_NO_UNROLL
      for (int piece = warp() - 1; piece < kPieces; piece += Handover<Tile>::kWarps) {
        const int row = first_m + piece * kRows + lane();
        if (lane() < kRows && row < m) {
          epilogue.operands(row, first_n, [&](const auto* operand) {
            prefetch_bytes(operand, columns * int(sizeof(*operand)));
          });
        }
        pause(kPause);
      }
    }
    sync_warp();
    if (lane() == 0) barrier_arrive(handover.ready(index));
  }
}

// Multiplies and writes out the tiles of consumer warpgroup `group`.
template <class Tile, int kN, int kK, int kSlice, class Epilogue>
VITC_DEVICE void consume(const Ring<Tile>& ring, const Handover<Tile>& handover, int m, int group,
                         const Epilogue& epilogue) {
  using T = typename Tile::T;
  using Where = Raster<Tile, kN>;
  using TileSums = Sums<T, Tile::kRows, Tile::kColumns>;
  constexpr int kSteps = (kK + kTileDepth - 1) / kTileDepth;
  constexpr bool kPingPong = Tile::kPingPong;
  const int turn = 1 + group, other_turn = 1 + (group ^ 1);  // named barriers: who may multiply
  const int shared_rows = kPingPong ? 0 : group * Tile::kRows;

  wait_for_previous_kernel();
  if (kPingPong && group == 1) named_arrive(1, 2 * kWarpgroup);
  VITC_NO_UNROLL
  for (int index = kPingPong ? group : 0;; index += kPingPong ? 2 : 1) {
    // Read anew for each tile: what is kept costs the epilogue registers.
    const int stride = fresh_grid_size() / Tile::kCluster, tiles = Where::tiles(opaque(m));
    const int number = fresh_block() / Tile::kCluster + index * stride;
    if (number >= tiles) break;
    const int tile = Where::tile(number, tiles);
    const int rank = Tile::kCluster == 1 ? 0 : int(cluster_rank());
    const int first_m = Where::row(tile, rank) + shared_rows, first_n = Where::column(tile);
    Position<Tile> at;
    at.skip(index * kSteps);
    int before = 0;  // slot of the step before, which is read until its products are done
    const auto release = [&](int slot) {
      if constexpr (Tile::kCluster == 1) {
        if (lane() == 0) barrier_arrive(ring.empty(slot));
      } else {
        if (lane() < Tile::kCluster) barrier_arrive_at(ring.empty(slot), unsigned(lane()));
      }
    };
    TileSums sums;
    const auto multiply = [&](auto is_first) {
      constexpr bool kFirst = decltype(is_first)::value;
      barrier_wait(ring.full(at.slot), at.parity);
      sums.template multiply<kFirst>(ring.tile_a(at.slot) + shared_rows * kTileBytes,
                                     ring.tile_b(at.slot));
      if constexpr (!kFirst) {
        products_wait<1>();
        release(before);
      }
      before = at.slot;
      at.next();
    };
    // Not before its turn may a warpgroup wait for `full`: the parity could be that of two phases
    // ago.
    if constexpr (kPingPong) named_sync(turn, 2 * kWarpgroup);
    multiply(Int<1>{});
    if (kHandsOver<Epilogue> && lane() == 0) barrier_arrive(handover.started(index));
    VITC_NO_UNROLL
    for (int step = 1; step < kSteps; ++step) multiply(Int<0>{});
    RowOperands<kN, TileSums, T, Epilogue> operands;  // the first while the last products run
    if constexpr (decltype(operands)::kEarly) operands.load(0, m, first_m, first_n, epilogue);
    if (kPingPong && number + stride < tiles) named_arrive(other_turn, 2 * kWarpgroup);
    sums.finish();
    release(before);

    // Also where there are no scales: `started` must not run two tiles ahead of who waits for it.
    if constexpr (kHandsOver<Epilogue>) barrier_wait(handover.ready(index), handover.parity(index));
    float scales[TileSums::kBlocks * 2];
    read_scales<TileSums, Epilogue>(scales, handover.scales(index) + shared_rows);
    write_out<kN, kSlice>(sums, m, first_m, first_n, scales, operands, epilogue);
  }
}

template <class Tile, int kN, int kK, int kSlice, class Epilogue>
VITC_KERNEL(Tile::kThreads, 1)
gemm_kernel(int m, const __grid_constant__ TensorMap map_a, const __grid_constant__ TensorMap map_w,
            const __grid_constant__ Epilogue epilogue) {
  const Ring<Tile> ring{dynamic_shared<char>()};
  const Handover<Tile> handover{ring.end()};
  const int rank = Tile::kCluster == 1 ? 0 : int(cluster_rank());
  const int first = block() / Tile::kCluster, stride = int(grid_size().x) / Tile::kCluster;
  const int tiles = Raster<Tile, kN>::tiles(m);
  if (thread() == 0) {
    prefetch_map(&map_a);
    prefetch_map(&map_w);
    handover.init();
    ring.init(4 * Tile::kCluster * (Tile::kPingPong ? 1 : Tile::kConsumers));
  }
  if constexpr (Tile::kCluster == 1) {
    sync_block();
  } else {
    cluster_sync();
  }

  // Together what the block was launched with: 3 x 168 or 4 x 128 for a thread of each warpgroup.
  if (thread() < kWarpgroup) {
    give_back_registers<Tile::kConsumers == 2 ? 24 : 32>();
    if (thread() == 0) {
      produce<Tile, kN, kK>(ring, &map_a, &map_w, first, stride, tiles, rank);
    } else if (kHandsOver<Epilogue> && thread() >= kWarp) {
      fetch_for_epilogue<Tile, kN, (kK + kTileDepth - 1) / kTileDepth>(handover, m, first, stride,
                                                                       tiles, rank, epilogue);
    }
  } else {
    take_registers<Tile::kConsumers == 2 ? 240 : 160>();
    consume<Tile, kN, kK, kSlice>(ring, handover, m, warpgroup() - 1, epilogue);
  }
  if constexpr (Tile::kCluster > 1) {  // the others may still arrive at this block's barriers
    sync_warp();
    cluster_sync();
  }
}

inline int multiprocessors() {
  static const int count = [] {
    int device = 0, found = 0;
    cudaGetDevice(&device);
    cudaDeviceGetAttribute(&found, cudaDevAttrMultiProcessorCount, device);
    return found;
  }();
  return count > 0 ? count : 1;
}

// Launches the kernel for m >= 1 rows of A, `row_stride` elements apart. W is packed (tile.h).
// Statistics are those of kSlice columns.
template <class Tile, int kN, int kK, int kSlice, class Epilogue>
int gemm(const char* name, Stream stream, int m, const typename Tile::T* a, int64_t row_stride,
         const typename Tile::T* w, const Epilogue& epilogue) {
  TensorMap map_a, map_w;
  int status = encode_map(&map_a, a, m, kK, row_stride, Tile::kTileRows);
  if (status == 0)
    status = encode_map(&map_w, w, kPackedRows<kN>, kK, kK, Tile::kColumns / Tile::kCluster);
  if (status != 0) return status;
  const int clusters = std::min(Raster<Tile, kN>::tiles(m), multiprocessors() / Tile::kCluster);
  const LaunchShape shape{name, Dim3(unsigned(clusters * Tile::kCluster)), Tile::kThreads,
                          size_t(Tile::kSharedBytes), stream};
  return launch_clusters(shape, Tile::kCluster, VITC_OVERLAP,
                         gemm_kernel<Tile, kN, kK, kSlice, Epilogue>, m, map_a, map_w, epilogue);
}

}  // namespace vitc::gpu::sm90
