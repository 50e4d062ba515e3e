// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) on Hopper, for few rows, where the time is that of
// reaching memory.
//
// A cluster of kSplit blocks computes one tile; each block takes its part of K. The blocks then add
// their sums up through each other's shared memory, each some of the rows, in the order of the
// parts. Weights of the first kStages steps are requested before the kernel before this one has
// ended.
#pragma once

#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tile.h"

namespace vitc::gpu::sm90 {

// A tile of 64 kGroups rows, 64 to each warpgroup.
template <class T_, int kColumns_, int kStages_, int kSplit_, int kGroups_ = 1>
struct SplitTile {
  using T = T_;
  static constexpr int kColumns = kColumns_, kStages = kStages_, kSplit = kSplit_;
  static constexpr int kGroups = kGroups_, kRows = 64 * kGroups;
  static constexpr int kBytesA = kRows * kTileBytes, kBytesB = kColumns * kTileBytes;
  static constexpr int kConsumers = kGroups * kWarpgroup, kThreads = kConsumers + kWarp;
  // Partial sums take the place of the stages; a row is 8 floats longer, against bank conflicts.
  static constexpr int kPitch = kColumns + 8;
  static constexpr int kRingBytes = kStages * (kBytesA + kBytesB + 2 * int(sizeof(Barrier)));
  static constexpr int kSharedBytes = kRingBytes + kRows * int(sizeof(float));
  static_assert(kColumns % kColumnGroup == 0);
  static_assert(kSplit == 1 ||
                kStages * (kBytesA + kBytesB) >= kRows * kPitch * int(sizeof(float)));
};

// Adds up the blocks' sums in shared memory and passes this block's rows through the epilogue: 8
// columns a thread. All consumer threads come here.
template <class Tile, int kN, int kSlice, class Epilogue>
VITC_DEVICE void write_out_sums(const float* partial, int m, int first_m, int first_n, int rank,
                                const float* row_scale, const Epilogue& epilogue) {
  constexpr int kAcross = Tile::kColumns / kVector, kAtOnce = Tile::kConsumers / kAcross;
  const int x = thread() % kAcross * kVector, column = first_n + x, y = thread() / kAcross;
  const int end = Tile::kRows * (rank + 1) / Tile::kSplit;
  VITC_NO_UNROLL
  for (int first = Tile::kRows * rank / Tile::kSplit; first < end; first += kAtOnce) {
    const int local = first + y, row = first_m + local;
    const bool inside = y < kAtOnce && local < end && row < m && column < kN;
    typename Epilogue::Statistics slice;
    if (inside) {
      const float* from = partial + local * Tile::kPitch + x;
      float part[Tile::kSplit][2][4], v[kVector];
      VITC_UNROLL
      for (int block = 0; block < Tile::kSplit; ++block) {
        load_from(part[block][0], from, unsigned(block));
        load_from(part[block][1], from + 4, unsigned(block));
      }
      VITC_UNROLL
      for (int c = 0; c < kVector; ++c) {
        v[c] = part[0][c / 4][c % 4];
        VITC_UNROLL
        for (int block = 1; block < Tile::kSplit; ++block) v[c] += part[block][c / 4][c % 4];
      }
      epilogue.steps(row, column, v, Epilogue::kRowScale ? row_scale[local] : 1.f);
      epilogue.store(row, column, v);
      slice.add(v);
    }
    if constexpr (Epilogue::Statistics::kNumbers > 0) {
      static_assert(Tile::kColumns % kSlice == 0 && kWarp % (kSlice / kVector) == 0);
      slice = slice.template total<kSlice / kVector>();
      if (inside && column % kSlice == 0) epilogue.statistics(row, column / kSlice, slice);
    }
  }
}

template <class Tile, int kN, int kK, int kSlice, class Epilogue>
VITC_KERNEL(Tile::kThreads, 1)
split_gemm_kernel(int m, const __grid_constant__ TensorMap map_a,
                  const __grid_constant__ TensorMap map_w,
                  const __grid_constant__ Epilogue epilogue) {
  constexpr int kTilesN = (kN + Tile::kColumns - 1) / Tile::kColumns;
  constexpr int kAllSteps = (kK + kTileDepth - 1) / kTileDepth;
  static_assert(kAllSteps >= Tile::kSplit);
  using TileSums = Sums<typename Tile::T, 64, Tile::kColumns>;

  char* memory = dynamic_shared<char>();
  const Ring<Tile> ring{memory};
  float* row_scale = reinterpret_cast<float*>(ring.end());
  const int tile = block() / Tile::kSplit, rank = block() % Tile::kSplit;
  const int first_m = tile / kTilesN * Tile::kRows, first_n = tile % kTilesN * Tile::kColumns;
  const int first_step = kAllSteps * rank / Tile::kSplit;
  const int steps = kAllSteps * (rank + 1) / Tile::kSplit - first_step;
  const int ahead = minimum(steps, int(Tile::kStages));
  const bool producer = thread() == Tile::kConsumers;
  const auto copy_weights = [&](int slot, int step) {
    barrier_expect(ring.full(slot), Tile::kBytesA + Tile::kBytesB);
    copy_tile(ring.tile_b(slot), &map_w, (first_step + step) * kTileDepth, first_n,
              ring.full(slot));
  };
  const auto copy_rows = [&](int slot, int step) {
    copy_tile(ring.tile_a(slot), &map_a, (first_step + step) * kTileDepth, first_m,
              ring.full(slot));
  };

  if (producer) {
    prefetch_map(&map_w);
    prefetch_map(&map_a);
    ring.init(Tile::kConsumers / kWarp);
    VITC_NO_UNROLL
    for (int step = 0; step < ahead; ++step) copy_weights(step, step);
    let_next_kernel_start();  // at once: where two blocks fit, its weights come while this one
                              // works
  }
  sync_block();
  wait_for_previous_kernel();
  if (warp() == Tile::kConsumers / kWarp) {
    if (producer) {
      VITC_NO_UNROLL
      for (int step = 0; step < ahead; ++step) copy_rows(step, step);
      Position<Tile> at;
      VITC_NO_UNROLL
      for (int step = ahead; step < steps; ++step) {
        barrier_wait(ring.empty(at.slot), at.parity);
        copy_weights(at.slot, step);
        copy_rows(at.slot, step);
        at.next();
      }
    }
    sync_warp();
  } else {
    const int group_row = warpgroup() * 64;
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
      sums.template multiply<kFirst>(ring.tile_a(at.slot) + group_row * kTileBytes,
                                     ring.tile_b(at.slot));
      if constexpr (!kFirst) {
        products_wait<1>();
        if (lane() == 0) barrier_arrive(ring.empty(before));
      }
      before = at.slot;
      at.next();
    };
    multiply(Int<1>{});
    VITC_NO_UNROLL
    for (int step = 1; step < steps; ++step) multiply(Int<0>{});
    RowOperands<TileSums, typename Tile::T, Epilogue> operands;
    if constexpr (Tile::kSplit == 1)
      operands.template load<kN>(m, first_m + group_row, first_n, 0, epilogue);
    sums.finish();
    named_sync(1, Tile::kConsumers);  // the stages are read, the row scales are there
    if constexpr (Tile::kSplit == 1) {
      float scales[2];
      read_scales<TileSums, Epilogue>(scales, row_scale + group_row);
      write_out<kN, kSlice, TileSums, Tile::kColumns>(sums, m, first_m + group_row, first_n, scales,
                                                      operands, epilogue);
    } else {
      VITC_UNROLL
      for (int half = 0; half < 2; ++half) {
        float* to =
            reinterpret_cast<float*>(memory) + (group_row + TileSums::row(0, half)) * Tile::kPitch;
        VITC_UNROLL
        for (int group = 0; group < Tile::kColumns / kColumnGroup; ++group) {
          float v[kVector];
          sums.get(v, 0, half, group);
          store<kVector>(to + TileSums::column(group), v);
        }
      }
    }
  }
  if constexpr (Tile::kSplit > 1) {
    cluster_sync();
    if (thread() < Tile::kConsumers) {
      write_out_sums<Tile, kN, kSlice>(reinterpret_cast<float*>(memory), m, first_m, first_n, rank,
                                       row_scale, epilogue);
    }
    sync_warp();
    cluster_sync();  // the others have read this block's sums
  }
}

// Launches the kernel for m >= 1 rows of A, `row_stride` elements apart. W is packed (tile.h).
// Statistics are those of kSlice columns.
template <class Tile, int kN, int kK, int kSlice, class Epilogue>
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
                         split_gemm_kernel<Tile, kN, kK, kSlice, Epilogue>, m, map_a, map_w,
                         epilogue);
}

}  // namespace vitc::gpu::sm90
