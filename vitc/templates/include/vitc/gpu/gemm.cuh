// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) for every NVIDIA card from sm_75 on.
//
// A block computes a kBM x kBN tile in steps of kBK: copies run kStages - 1 steps ahead of the arithmetic
// in a ring of shared-memory stages; one barrier per step both publishes the stage that has landed and
// frees the one that was read last. N and K are compile-time, M is the batch's. M, N and K may be ragged.
#pragma once

#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/launch.h"
#include "vitc/gpu/loader.h"
#include "vitc/gpu/warp_tile.h"

namespace vitc::gpu {

// A configuration. kAsyncCopies = false with kStages = 2 is sm_75's form (with Mma<half, 8> or Simt).
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
  using LayoutA = SharedTile<kBK * int(sizeof(Storage))>;
  using LayoutB = SharedTile<kBK * int(sizeof(Storage)), Warp::kVector>;
  static constexpr int kBytesA = kBM * LayoutA::kRowBytes, kBytesB = kBN * LayoutB::kRowBytes;
  static constexpr int kStageBytes = kBytesA + kBytesB;
  static constexpr int kSharedBytes = kStages * kStageBytes + kBM * int(sizeof(float));
  static_assert(kStages >= 2 && kBM % kWarpsM == 0 && kBN % kWarpsN == 0);
  // With 16-bit accumulator budgets in mind: two blocks a multiprocessor when 128 registers suffice.
  static constexpr int kBlocks = kThreads <= 256 && Warp::kTilesM * Warp::kTilesN <= 16 ? 2 : 1;
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
      float squares = 0;
      VITC_UNROLL
      for (int group = 0; group < Warp::kGroups; ++group) {
        const int column = first_n + Warp::first_column(group);
        float v[V];
        out.get(v, i, half, group);
        if (row >= m) continue;
        if constexpr (kN % V == 0) {
          if (column >= kN) continue;
          epilogue(row, column, v, scale);
          VITC_UNROLL
          for (int c = 0; c < V; ++c) squares = fmaf(v[c], v[c], squares);
        } else {
          VITC_UNROLL
          for (int c = 0; c < V; ++c) {
            if (column + c >= kN) continue;
            float one[1] = {v[c]};
            epilogue(row, column + c, one, scale);
            squares = fmaf(one[0], one[0], squares);
          }
        }
      }
      if constexpr (Epilogue::kSumSquares) {
        squares = warp_sum<4>(squares);  // the four lanes that share the row
        if (row < m && lane() % 4 == 0 && first_n < kN) {
          epilogue.sum_squares(row, first_n / (Warp::kTilesN * 8), squares);
        }
      }
    }
  }
}

template <class Tile, int kN, int kK, class Source, class Epilogue>
VITC_KERNEL(Tile::kThreads, Tile::kBlocks)
gemm_kernel(int m, Source a, const typename Tile::Storage* w, Epilogue epilogue) {
  using S = typename Tile::Storage;
  using Weights = MatrixRows<S, kK>;
  constexpr int kTilesN = (kN + Tile::kBN - 1) / Tile::kBN, kSteps = (kK + Tile::kBK - 1) / Tile::kBK;
  constexpr int kStages = Tile::kStages;

  char* stages = dynamic_shared<char>();
  float* row_scale = reinterpret_cast<float*>(stages + kStages * Tile::kStageBytes);
  const int first_m = block() / kTilesN * Tile::kBM, first_n = block() % kTilesN * Tile::kBN;
  const int warp_m = warp() / Tile::kWarpsN * Tile::kWarpRows, warp_n = warp() % Tile::kWarpsN * Tile::kSlice;

  TileLoader<S, Source, typename Tile::LayoutA, Tile::kBM, Tile::kThreads, kK, Tile::kAsyncCopies> load_a(
      a, first_m, m);
  TileLoader<S, Weights, typename Tile::LayoutB, Tile::kBN, Tile::kThreads, kK, Tile::kAsyncCopies> load_b(
      Weights{w}, first_n, kN);

  VITC_UNROLL
  for (int step = 0; step < kStages - 1; ++step) {
    if (step < kSteps) {
      char* stage = stages + step * Tile::kStageBytes;
      load_a.start(stage, step * Tile::kBK);
      load_b.start(stage + Tile::kBytesA, step * Tile::kBK);
      load_a.finish(stage);
      load_b.finish(stage + Tile::kBytesA);
    }
    if constexpr (Tile::kAsyncCopies) async_copy_commit();
  }
  if constexpr (Epilogue::kRowScale) {  // published by the main loop's barriers
    for (int r = thread(); r < Tile::kBM; r += Tile::kThreads) {
      row_scale[r] = epilogue.row_scale(minimum(first_m + r, m - 1));
    }
  }

  typename Tile::Warp out;
  out.clear();
  int read = 0, write_to = kStages - 1;
  VITC_NO_UNROLL
  for (int step = 0; step < kSteps; ++step) {
    if constexpr (Tile::kAsyncCopies) async_copy_wait<kStages - 2>();
    sync_block();
    const bool more = step + kStages - 1 < kSteps;
    char* next = stages + write_to * Tile::kStageBytes;
    if (more) {
      load_a.start(next, (step + kStages - 1) * Tile::kBK);
      load_b.start(next + Tile::kBytesA, (step + kStages - 1) * Tile::kBK);
    }
    if constexpr (Tile::kAsyncCopies) async_copy_commit();

    const char* stage = stages + read * Tile::kStageBytes;
    VITC_UNROLL
    for (int chunk = 0; chunk < Tile::LayoutA::kChunks; chunk += 2) {
      out.template multiply<typename Tile::LayoutA, typename Tile::LayoutB>(
          stage, stage + Tile::kBytesA, warp_m, warp_n, chunk);
    }
    if (more) {
      load_a.finish(next);
      load_b.finish(next + Tile::kBytesA);
    }
    read = read + 1 < kStages ? read + 1 : 0;
    write_to = write_to + 1 < kStages ? write_to + 1 : 0;
  }
  store_tile<kN>(out, m, first_m, warp_m, first_n + warp_n, row_scale, epilogue);
}

// Launches the kernel for m >= 1 rows.
template <class Tile, int kN, int kK, class Source, class Epilogue>
int gemm(const char* name, Stream stream, int m, const Source& a, const typename Tile::Storage* w,
         const Epilogue& epilogue) {
  const int blocks = divide_up(m, Tile::kBM) * divide_up(kN, Tile::kBN);
  return launch({name, Dim3(unsigned(blocks)), Tile::kThreads, size_t(Tile::kSharedBytes), stream},
                gemm_kernel<Tile, kN, kK, Source, Epilogue>, m, a, w, epilogue);
}

}  // namespace vitc::gpu
