// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) on Hopper, for few rows, where the time is that of
// reaching memory.
//
// A cluster of kSplit blocks computes one tile of 64 x kColumns; each block takes its part of K.
// The blocks then add their sums up through each other's shared memory, 64 / kSplit rows each.
// Weights of the first kStages steps are requested before the kernel before this one has ended.
#pragma once

#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tile.h"

namespace vitc::gpu::sm90 {

template <class T_, int kColumns_, int kStages_, int kSplit_>
struct SplitTile {
  using T = T_;
  static constexpr int kRows = 64, kColumns = kColumns_, kStages = kStages_, kSplit = kSplit_;
  static constexpr int kBytesA = kRows * kTileBytes, kBytesB = kColumns * kTileBytes;
  static constexpr int kThreads = kWarpgroup + kWarp;
  // Partial sums take the place of the stages; a row is 8 floats longer, against bank conflicts.
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kRingBytes = kStages * (kBytesA + kBytesB + 2 * int(sizeof(Barrier)));
  static constexpr int kSharedBytes = kRingBytes + kRows * int(sizeof(float));
  static_assert(kColumns % kColumnGroup == 0 && kRows % kSplit == 0);
  static_assert(kSplit == 1 ||
                kStages * (kBytesA + kBytesB) >= kRows * kPitch * int(sizeof(float)));
};

// Adds up the blocks' sums in shared memory and passes this block's rows through the epilogue: 8
// columns a thread. All kWarpgroup threads come here.
template <class Tile, int kN, class Epilogue>
VITC_DEVICE void write_out_sums(const float* partial, int m, int first_m, int first_n, int rank,
                                const float* row_scale, const Epilogue& epilogue) {
  constexpr int kAcross = Tile::kColumns / kVector, kAtOnce = kWarpgroup / kAcross;
  constexpr int kRows = Tile::kRows / Tile::kSplit;
  const int x = thread() % kAcross * kVector, column = first_n + x;
  for (int r = thread() / kAcross; r < kRows && thread() < kAtOnce * kAcross; r += kAtOnce) {
    const int local = rank * kRows + r, row = first_m + local;
    float v[kVector] = {};
    VITC_UNROLL
    for (int block = 0; block < Tile::kSplit; ++block) {
      VITC_UNROLL
      for (int i = 0; i < kVector; i += 4) {
        float part[4];
        load_from(part, partial + local * Tile::kPitch + x + i, unsigned(block));
        VITC_UNROLL
        for (int c = 0; c < 4; ++c) v[i + c] += part[c];
      }
    }
    const bool inside = row < m && column < kN;
    float squares = 0;
    if (inside) {
      epilogue.steps(row, column, v, Epilogue::kRowScale ? row_scale[local] : 1.f);
      epilogue.store(row, column, v);
      VITC_UNROLL
      for (int c = 0; c < kVector; ++c) squares = fmaf(v[c], v[c], squares);
    }
    if constexpr (Epilogue::kSumSquares) {
      static_assert(Tile::kColumns % 64 == 0 && kRows % kAtOnce == 0 && kWarpgroup % kAcross == 0);
      squares = warp_sum<8>(squares);  // the eight lanes of a slice of 64 columns
      if (inside && column % 64 == 0) epilogue.sum_squares(row, column / 64, squares);
    }
  }
}

template <class Tile, int kN, int kK, class Epilogue>
VITC_KERNEL(Tile::kThreads, 1)
split_gemm_kernel(int m, const __grid_constant__ TensorMap map_a,
                  const __grid_constant__ TensorMap map_w,
                  const __grid_constant__ Epilogue epilogue) {
  constexpr int kTilesN = (kN + Tile::kColumns - 1) / Tile::kColumns;
  constexpr int kSteps = (kK + kTileDepth - 1) / kTileDepth / Tile::kSplit;
  constexpr int kAhead = kSteps < Tile::kStages ? kSteps : Tile::kStages;
  static_assert((kK + kTileDepth - 1) / kTileDepth % Tile::kSplit == 0);
  using TileSums = Sums<typename Tile::T, Tile::kRows, Tile::kColumns>;

  char* memory = dynamic_shared<char>();
  const Ring<Tile> ring{memory};
  float* row_scale = reinterpret_cast<float*>(ring.end());
  const int tile = block() / Tile::kSplit, rank = block() % Tile::kSplit;
  const int first_m = tile / kTilesN * Tile::kRows, first_n = tile % kTilesN * Tile::kColumns;
  const bool producer = thread() == kWarpgroup;
  const auto copy_weights = [&](int slot, int step) {
    barrier_expect(ring.full(slot), Tile::kBytesA + Tile::kBytesB);
    copy_tile(ring.tile_b(slot), &map_w, (rank * kSteps + step) * kTileDepth, first_n,
              ring.full(slot));
  };
  const auto copy_rows = [&](int slot, int step) {
    copy_tile(ring.tile_a(slot), &map_a, (rank * kSteps + step) * kTileDepth, first_m,
              ring.full(slot));
  };

  if (producer) {
    prefetch_map(&map_w);
    prefetch_map(&map_a);
    ring.init(4);
    for (int step = 0; step < kAhead; ++step) copy_weights(step, step);
    let_next_kernel_start();  // at once: where two blocks fit, its weights come while this one
                              // works
  }
  sync_block();
  wait_for_previous_kernel();
  if (warp() == kWarpgroup / kWarp) {
    if (producer) {
      for (int step = 0; step < kAhead; ++step) copy_rows(step, step);
      Position<Tile> at;
      VITC_NO_UNROLL
      for (int step = kAhead; step < kSteps; ++step) {
        barrier_wait(ring.empty(at.slot), at.parity);
        copy_weights(at.slot, step);
        copy_rows(at.slot, step);
        at.next();
      }
    }
    sync_warp();
  } else {
    if constexpr (Epilogue::kRowScale) {
      if (thread() < Tile::kRows)
        row_scale[thread()] = epilogue.row_scale(minimum(first_m + thread(), m - 1));
    }
    TileSums sums;
    Position<Tile> at;
    int before = 0;
    const auto multiply = [&](auto is_first) {
      constexpr bool kFirst = decltype(is_first)::value;
      barrier_wait(ring.full(at.slot), at.parity);
      sums.template multiply<kFirst>(ring.tile_a(at.slot), ring.tile_b(at.slot));
      if constexpr (!kFirst) {
        products_wait<1>();
        if (lane() == 0) barrier_arrive(ring.empty(before));
      }
      before = at.slot;
      at.next();
    };
    multiply(Int<1>{});
    VITC_NO_UNROLL
    for (int step = 1; step < kSteps; ++step) multiply(Int<0>{});
    sums.finish();
    named_sync(1, kWarpgroup);  // the stages are read, the row scales are there
    if constexpr (Tile::kSplit == 1) {
      float scales[2];
      read_scales<TileSums, Epilogue>(scales, row_scale);
      write_out<kN, TileSums, Tile::kColumns>(sums, m, first_m, first_n, scales, epilogue);
    } else {
      VITC_UNROLL
      for (int half = 0; half < 2; ++half) {
        VITC_UNROLL
        for (int group = 0; group < Tile::kColumns / kColumnGroup; ++group) {
          float v[kVector];
          sums.get(v, 0, half, group);
          float* to = reinterpret_cast<float*>(memory) + TileSums::row(0, half) * Tile::kPitch;
          store<kVector>(to + TileSums::column(group), v);
        }
      }
    }
  }
  if constexpr (Tile::kSplit > 1) {
    cluster_sync();
    if (thread() < kWarpgroup) {
      write_out_sums<Tile, kN>(reinterpret_cast<float*>(memory), m, first_m, first_n, rank,
                               row_scale, epilogue);
    }
    sync_warp();
    cluster_sync();  // the others have read this block's sums
  }
}

// Launches the kernel for m >= 1 rows of A, `row_stride` elements apart. W is packed (tile.h).
template <class Tile, int kN, int kK, class Epilogue>
int split_gemm(const char* name, Stream stream, int m, const typename Tile::T* a,
               int64_t row_stride, const typename Tile::T* w, const Epilogue& epilogue) {
  TensorMap map_a, map_w;
  int status = encode_map(&map_a, a, m, kK, row_stride, Tile::kRows);
  if (status == 0) status = encode_map(&map_w, w, kPackedRows<kN>, kK, kK, Tile::kColumns);
  if (status != 0) return status;
  const int tiles = divide_up(m, Tile::kRows) * divide_up(kN, Tile::kColumns);
  const LaunchShape shape{name, Dim3(unsigned(tiles * Tile::kSplit)), Tile::kThreads,
                          size_t(Tile::kSharedBytes), stream};
  return launch_clusters(shape, Tile::kSplit, VITC_OVERLAP,
                         split_gemm_kernel<Tile, kN, kK, Epilogue>, m, map_a, map_w, epilogue);
}

}  // namespace vitc::gpu::sm90
