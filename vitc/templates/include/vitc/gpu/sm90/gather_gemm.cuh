// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) on Hopper, where A's rows are gathered: the patches of
// images, for example. The source (vitc/gpu/source.cuh) and the weights are those of the portable
// GEMM, so that a tuner can choose between the two.
//
// Consumers, tiles and their order are those of gemm.cuh. The producer's four warps gather A by
// 16-byte cp.async into the layout that tensor copies leave. Why not tensor copies of the images: a
// box is a patch wide, 32 bytes for 16 pixels, a quarter of the rows that products read here; and
// a tile is no rectangle of patches. It begins and ends within a row of them (14 do not divide
// 128), goes on in the next image, and has rows of zeros where class tokens stand: several boxes of
// several shapes for each 32 bytes of k. A source, on the other hand, may be any map.
#pragma once

#include "vitc/gpu/sm90/gather.h"
#include "vitc/gpu/sm90/gemm.cuh"
#include "vitc/gpu/source.cuh"

namespace vitc::gpu::sm90 {

// As GemmTile, without clusters. Statistics are those of kSlice columns.
template <class T, int kRows, int kColumns, int kStages, bool kPingPong, int kSlice_>
struct GatherTile : GemmTile<T, kRows, kColumns, kStages, 2, kPingPong, 1> {
  using Storage = T;
  static constexpr int kSlice = kSlice_;
  static constexpr int kProducers = kWarpgroup / kWarp;
  static_assert(kStages >= kProducers);  // see gather()
};

// A functor whose operands are read where they are used: all warps of the producer have work.
template <class Epilogue>
struct Unfetched : Epilogue {
  static constexpr bool kOperands = false;
};

// Fills the stages. A warp fills one at a time and waits for its own copies, then hands it over:
// four are under way, and none waits for another.
template <class Tile, int kN, int kK, class Source>
VITC_DEVICE void gather(const Ring<Tile>& ring, int m, const Source& a, const TensorMap* map_w) {
  using Where = Raster<Tile, kN>;
  constexpr int kSteps = (kK + kTileDepth - 1) / kTileDepth;
  // A copy takes two chunks of 16 rows: neighbouring patches, whose pixels lie side by side. Each
  // eight lanes have even or odd rows, whose swizzled chunks cover all banks.
  constexpr int kRowsAtOnce = kWarp / 2, kShare = Tile::kTileRows / kRowsAtOnce;
  const int row = lane() / 2 % 4 * 2 + lane() / 8 % 2 + lane() / 16 * 8, odd = lane() % 2;
  typename Source::Row rows[kShare];
  int known = -1;  // the tile that they are of
  VITC_NO_UNROLL
  for (int index = warp();; index += Tile::kProducers) {
    const int tile = block() + index / kSteps * int(grid_size().x);
    if (tile >= Where::tiles(m)) break;
    const int first_k = index % kSteps * kTileDepth;
    Position<Tile> at;
    at.skip(index);
    Barrier* full = ring.full(at.slot);
    // Parities tell a phase from the one before, not from the one before that. `full` is never so
    // far behind: this warp's last stage was free when all steps kStages before it had been read.
    // Once another warp has filled the stage, which `full` says, `empty` is not either.
    barrier_wait(full, at.parity ^ 1);
    barrier_wait(ring.empty(at.slot), at.parity ^ 1);
    if (lane() == 0) {
      copy_weights(ring.tile_b(at.slot), map_w, first_k, Where::column(tile) / kColumnGroup, full);
    }
    if (index < Tile::kProducers) wait_for_previous_kernel();  // for A, not for weights
    if (tile != known) {
      known = tile;
      VITC_UNROLL
      for (int i = 0; i < kShare; ++i) {
        rows[i] = a.row(minimum(Where::row(tile, 0) + i * kRowsAtOnce + row, m - 1));
      }
    }
    VITC_UNROLL
    for (int pair = 0; pair < kTileBytes / 32; ++pair) {
      const int chunk = 2 * pair + odd, k = first_k + chunk * kVector;
      char* target = ring.tile_a(at.slot) + row * kTileBytes + (chunk ^ row % 8) * 16;
      VITC_UNROLL
      for (int i = 0; i < kShare; ++i) {
        const int from = kK % kTileDepth == 0 || k < kK ? a.at(rows[i], k) : -1;
        async_copy_16(target + i * kRowsAtOnce * kTileBytes, a.base() + maximum(from, 0),
                      from >= 0);
      }
    }
    async_copy_commit();
    async_copy_wait<0>();
    proxy_fence();
    sync_warp();
    if (lane() == 0) barrier_expect(full, Tile::kBytesB);  // of which some may be there
  }
  let_next_kernel_start();
}

template <class Tile, int kN, int kK, class Source, class Epilogue>
VITC_KERNEL(Tile::kThreads, 1)
gather_gemm_kernel(int m, const __grid_constant__ Source a, const __grid_constant__ TensorMap map_w,
                   const __grid_constant__ Epilogue epilogue) {
  const Ring<Tile> ring{dynamic_shared<char>()};
  if (thread() == 0) {
    prefetch_map(&map_w);
    ring.init(4 * (Tile::kPingPong ? 1 : Tile::kConsumers));
  }
  sync_block();
  // Together the 3 x 168 for a thread of each warpgroup that the block was launched with.
  if (thread() < kWarpgroup) {
    give_back_registers<40>();
    gather<Tile, kN, kK>(ring, m, a, &map_w);
  } else {
    take_registers<232>();
    consume<Tile, kN, kK, Tile::kSlice>(ring, Handover<Tile>{ring.end()}, m, warpgroup() - 1,
                                        epilogue);
  }
}

// Launches the kernel for m >= 1 rows.
template <class Tile, int kN, int kK, class Source, class Epilogue>
int gather_gemm(const char* name, Stream stream, int m, const Source& a, const typename Tile::T* w,
                const Epilogue& epilogue) {
  static_assert(Source::kVector && std::is_same_v<typename Source::T, typename Tile::T>);
  static_assert(kN % kColumnGroup == 0 && !Epilogue::kRowScale);
  TensorMap map_w;
  const int status = encode_weights(&map_w, w, kN, kK, Tile::kColumns);
  if (status != 0) return status;
  const int blocks = std::min(Raster<Tile, kN>::tiles(m), multiprocessors());
  const LaunchShape shape{name, Dim3(unsigned(blocks)), Tile::kThreads, size_t(Tile::kSharedBytes),
                          stream};
  return launch_clusters(shape, 1, VITC_OVERLAP,
                         gather_gemm_kernel<Tile, kN, kK, Source, Unfetched<Epilogue>>, m, a, map_w,
                         Unfetched<Epilogue>{epilogue});
}

}  // namespace vitc::gpu::sm90
