// The GEMM for few rows and long K: kSplits blocks share the steps of a tile, so that a small batch
// fills the card. They leave float partial sums in `scratch`; a second kernel adds them in a fixed
// order, so results do not vary between runs, and applies the epilogue.
#pragma once

#include "vitc/gpu/gemm.cuh"

namespace vitc::gpu {

template <int kN>
struct PartialSums : NoRowTerms {
  float* sums;  // [m, kN] of this split
  template <int V>
  VITC_DEVICE void operator()(int row, int column, float (&v)[V], float) const {
    store_floats<V>(sums + row * kN + column, v);
  }
};

template <class Tile, int kN, int kK, int kSplits, class Source>
VITC_KERNEL(Tile::kThreads, Tile::kBlocks)
gemm_split_kernel(int m, Source a, const typename Tile::Storage* w, float* scratch) {
  constexpr int kTilesN = (kN + Tile::kBN - 1) / Tile::kBN,
                kSteps = (kK + Tile::kBK - 1) / Tile::kBK;
  static_assert(kSplits <= kSteps, "every split must have a step");
  const int split = block() % kSplits, tile = block() / kSplits;
  const int first_step = split * kSteps / kSplits, end_step = (split + 1) * kSteps / kSplits;
  const int first_m = tile / kTilesN * Tile::kBM, first_n = tile % kTilesN * Tile::kBN;

  typename Tile::Warp out;
  accumulate<Tile, kN, kK>(out, dynamic_shared<char>(), m, first_m, first_n, first_step,
                           end_step - first_step, a, w, [] {});
  PartialSums<kN> partial;
  partial.sums = scratch + int64_t(split) * m * kN;
  store_tile<kN>(out, m, first_m, Tile::warp_row(), first_n + Tile::warp_column(), nullptr,
                 partial);
}

// Columns that a lane of the second kernel holds, and those of a partial sum of squares it gives.
template <int kN>
constexpr int kFinishVector = kN % 8 == 0   ? 8
                              : kN % 4 == 0 ? 4
                                            : 1;
template <int kN>
constexpr int kFinishSlice = kFinishVector<kN> * kWarp;
constexpr int kFinishThreads = 128;

// A warp per row and slice.
template <int kN, int kSplits, class Epilogue>
VITC_KERNEL(kFinishThreads, 1)
gemm_finish_kernel(int m, const float* scratch, Epilogue epilogue) {
  constexpr int V = kFinishVector<kN>, kSlices = (kN + kFinishSlice<kN> - 1) / kFinishSlice<kN>;
  wait_for_previous_kernel();
  const int item = block() * (kFinishThreads / kWarp) + warp(), row = item / kSlices,
            slice = item % kSlices;
  const int column = slice * kFinishSlice<kN> + lane() * V;
  float squares = 0;
  if (row < m && column < kN) {
    float v[V] = {};
    VITC_UNROLL
    for (int split = 0; split < kSplits; ++split)
      add(v, scratch + (int64_t(split) * m + row) * kN + column);
    epilogue(row, column, v, Epilogue::kRowScale ? epilogue.row_scale(row) : 1.f);
    VITC_UNROLL
    for (int c = 0; c < V; ++c) squares = fmaf(v[c], v[c], squares);
  }
  if constexpr (Epilogue::kSumSquares) {
    squares = warp_sum(squares);
    if (row < m && lane() == 0) epilogue.sum_squares(row, slice, squares);
  }
}

// As gemm(). scratch: kSplits * m * kN floats. Slices of sums of squares are kFinishSlice<kN> wide.
template <class Tile, int kN, int kK, int kSplits, class Source, class Epilogue>
int gemm_split(const char* name, Stream stream, int m, const Source& a,
               const typename Tile::Storage* w, const Epilogue& epilogue, float* scratch) {
  const int blocks = divide_up(m, Tile::kBM) * divide_up(kN, Tile::kBN) * kSplits;
  const int code =
      launch({name, Dim3(unsigned(blocks)), Tile::kThreads, size_t(Tile::kSharedBytes), stream},
             gemm_split_kernel<Tile, kN, kK, kSplits, Source>, m, a, w, scratch);
  if (code != 0) return code;
  const int warps = m * divide_up(kN, kFinishSlice<kN>);
  return launch(
      {name, Dim3(unsigned(divide_up(warps, kFinishThreads / kWarp))), kFinishThreads, 0, stream},
      gemm_finish_kernel<kN, kSplits, Epilogue>, m, scratch, epilogue);
}

}  // namespace vitc::gpu
