// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) for every NVIDIA card from sm_75 on.
//
// A block computes a kBM x kBN tile in steps of kBK: copies run kStages - 1 steps ahead of the
// arithmetic in a ring of shared-memory stages; one barrier per step both publishes the stage that
// has landed and frees the one that was read last. N and K are compile-time, M is the batch's. M, N
// and K may be ragged.
#pragma once

#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/launch.h"
#include "vitc/gpu/loader.h"
#include "vitc/gpu/warp_tile.h"

namespace vitc::gpu {

// A configuration. kAsyncCopies = false with kStages = 2 is sm_75's form (with Mma<half, 8> or
// Simt).
template <class Policy_, int kBM_, int kBN_, int kBK_, int kWarpsM_, int kWarpsN_, int kStages_,
          bool kAsyncCopies_ = true>
struct GemmTile {
  using Policy = Policy_;
  using Storage = typename Policy::Storage;
  static constexpr int kBM = kBM_, kBN = kBN_, kBK = kBK_, kWarpsM = kWarpsM_, kWarpsN = kWarpsN_;
  static constexpr int kStages = kStages_;
  static constexpr bool kAsyncCopies = kAsyncCopies_;
  static constexpr int kThreads = kWarpsM * kWarpsN * kWarp;
  static constexpr int kWarpRows = kBM / kWarpsM, kSlice = kBN / kWarpsN;
  using Warp = WarpTile<Policy, kWarpRows, kSlice>;
  using LayoutA = SharedTile<kBK* int(sizeof(Storage))>;
  using LayoutB = SharedTile<kBK* int(sizeof(Storage)), Warp::kVector>;
  static constexpr int kBytesA = kBM * LayoutA::kRowBytes, kBytesB = kBN * LayoutB::kRowBytes;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  // A product of few steps uses that many stages.
  static constexpr VITC_HOST_DEVICE int ring_bytes(int steps) {
    return (steps < kStages ? steps : kStages) * kStageBytes;
  }
  static constexpr VITC_HOST_DEVICE int shared_bytes(int steps) {
    return ring_bytes(steps) + kBM * 4;
  }
  static_assert(kStages >= 2 && kBM % kWarpsM == 0 && kBN % kWarpsN == 0);
  // Where in the tile the calling warp's part begins.
  static VITC_DEVICE int warp_row() { return warp() / kWarpsN * kWarpRows; }
  static VITC_DEVICE int warp_column() { return warp() % kWarpsN * kSlice; }

  // Blocks a multiprocessor must have registers for: two where their shared memory fits in 160 KiB
  // and 128 registers hold the sums (64), the fragments and the addresses, which float fragments
  // exceed.
  static constexpr bool kTwoBlocks = kAsyncCopies && kThreads == 256 && sizeof(Storage) == 2 &&
                                     Warp::kTilesM * Warp::kTilesN <= 16 &&
                                     shared_bytes(kStages) <= (80 << 10);
  static constexpr int kBlocks = kTwoBlocks ? 2 : 1;
};

// Passes a warp's part of the tile through the epilogue.
template <int kN, class Warp, class Epilogue>
VITC_DEVICE void store_tile(const Warp& out, int m, int first_m, int warp_m, int first_n,
                            const float* row_scale, const Epilogue& epilogue) {
  constexpr int V = Warp::kVector;
  VITC_UNROLL
  for (int i = 0; i < Warp::kTilesM; ++i) {
    VITC_UNROLL
    for (int half = 0; half < 2; ++half) {
      const int local = warp_m + Warp::row(i, half), row = first_m + local;
      const float scale = Epilogue::kRowScale ? row_scale[local] : 1.f;
      typename Epilogue::Statistics slice;
      VITC_UNROLL
      for (int group = 0; group < Warp::kGroups; ++group) {
        const int column = first_n + Warp::first_column(group);
        float v[V];
        out.get(v, i, half, group);
        if (row >= m) continue;
        if constexpr (kN % V == 0) {
          if (column >= kN) continue;
          epilogue(row, column, v, scale);
          slice.add(v);
        } else {
          VITC_UNROLL
          for (int c = 0; c < V; ++c) {
            if (column + c >= kN) continue;
            float one[1] = {v[c]};
            epilogue(row, column + c, one, scale);
            slice.add(one);
          }
        }
      }
      if constexpr (Epilogue::Statistics::kNumbers > 0) {
        slice = slice.template total<4>();  // of the four lanes that share the row
        if (row < m && lane() % 4 == 0 && first_n < kN) {
          epilogue.statistics(row, first_n / (Warp::kTilesN * 8), slice);
        }
      }
    }
  }
}

// The sums of one tile over steps [first_step, first_step + steps) of k. `before_loop` runs once
// copies are under way; what it writes to shared memory is published by the first barrier.
template <class Tile, int kN, int kK, class Source, class BeforeLoop>
VITC_DEVICE void accumulate(typename Tile::Warp& out, char* stages, int m, int first_m, int first_n,
                            int first_step, int steps, const Source& a,
                            const typename Tile::Storage* w, const BeforeLoop& before_loop) {
  using S = typename Tile::Storage;
  using Weights = MatrixRows<S, kK>;
  constexpr int kStages = Tile::kStages;
  TileLoader<S, Source, typename Tile::LayoutA, Tile::kBM, Tile::kThreads, kK, Tile::kAsyncCopies>
      load_a(a, first_m, m);
  TileLoader<S, Weights, typename Tile::LayoutB, Tile::kBN, Tile::kThreads, kK, Tile::kAsyncCopies>
      load_b(Weights{w}, first_n, kN);
  const auto stage_a = [&](int i) { return stages + i * Tile::kStageBytes; };
  const auto stage_b = [&](int i) { return stage_a(i) + Tile::kBytesA; };

  VITC_UNROLL
  for (int i = 0; i < kStages - 1; ++i) {  // weights do not depend on the previous kernel
    if (i < steps) {
      load_b.start(stage_b(i), (first_step + i) * Tile::kBK);
      load_b.finish(stage_b(i));
    }
  }
  wait_for_previous_kernel();
  let_next_kernel_start();
  VITC_UNROLL
  for (int i = 0; i < kStages - 1; ++i) {
    if (i < steps) {
      load_a.start(stage_a(i), (first_step + i) * Tile::kBK);
      load_a.finish(stage_a(i));
    }
    if constexpr (Tile::kAsyncCopies) async_copy_commit();
  }
  before_loop();

  const int warp_m = Tile::warp_row(), warp_n = Tile::warp_column();
  out.clear();
  int read = 0, write_to = kStages - 1;
  VITC_NO_UNROLL
  for (int step = 0; step < steps; ++step) {
    if constexpr (Tile::kAsyncCopies) async_copy_wait<kStages - 2>();
    sync_block();
    const bool more = step + kStages - 1 < steps;
    if (more) {
      const int k = (first_step + step + kStages - 1) * Tile::kBK;
      load_a.start(stage_a(write_to), k);
      load_b.start(stage_b(write_to), k);
    }
    if constexpr (Tile::kAsyncCopies) async_copy_commit();
    VITC_UNROLL
    for (int chunk = 0; chunk < Tile::LayoutA::kChunks; chunk += 2) {
      out.template multiply<typename Tile::LayoutA, typename Tile::LayoutB>(
          stage_a(read), stage_b(read), warp_m, warp_n, chunk);
    }
    if (more) {
      load_a.finish(stage_a(write_to));
      load_b.finish(stage_b(write_to));
    }
    read = read + 1 < kStages ? read + 1 : 0;
    write_to = write_to + 1 < kStages ? write_to + 1 : 0;
  }
}

template <class Tile, int kN, int kK, class Source, class Epilogue>
VITC_KERNEL(Tile::kThreads, Tile::kBlocks)
gemm_kernel(int m, Source a, const typename Tile::Storage* w, Epilogue epilogue) {
  constexpr int kTilesN = (kN + Tile::kBN - 1) / Tile::kBN,
                kSteps = (kK + Tile::kBK - 1) / Tile::kBK;
  const int first_m = block() / kTilesN * Tile::kBM, first_n = block() % kTilesN * Tile::kBN;
  char* stages = dynamic_shared<char>();
  float* row_scale = reinterpret_cast<float*>(stages + Tile::ring_bytes(kSteps));

  typename Tile::Warp out;
  accumulate<Tile, kN, kK>(out, stages, m, first_m, first_n, 0, kSteps, a, w, [&] {
    if constexpr (Epilogue::kRowScale) {
      for (int r = thread(); r < Tile::kBM; r += Tile::kThreads) {
        row_scale[r] = epilogue.row_scale(minimum(first_m + r, m - 1));
      }
    }
  });
  store_tile<kN>(out, m, first_m, Tile::warp_row(), first_n + Tile::warp_column(), row_scale,
                 epilogue);
}

// Launches the kernel for m >= 1 rows.
template <class Tile, int kN, int kK, class Source, class Epilogue>
int gemm(const char* name, Stream stream, int m, const Source& a, const typename Tile::Storage* w,
         const Epilogue& epilogue) {
  const int blocks = divide_up(m, Tile::kBM) * divide_up(kN, Tile::kBN);
  constexpr size_t kShared = Tile::shared_bytes(divide_up(kK, Tile::kBK));
  return launch({name, Dim3(unsigned(blocks)), Tile::kThreads, kShared, stream},
                gemm_kernel<Tile, kN, kK, Source, Epilogue>, m, a, w, epilogue);
}

}  // namespace vitc::gpu
