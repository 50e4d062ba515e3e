// Matrix product of two activations, per item of a batch: out = epilogue(A * B), A [items * M, K]
// through a row functor, B [K, N] or [N, K]. A worker packs the B of an item when it starts on it.
#pragma once
#include "vitc/cpu/gemm.h"
#include "vitc/cpu/pack.h"

namespace vitc {
inline namespace VITC_ISA {

// kTransposed: B is [N, K], as in A * B^T. Rows of the epilogue and of A are item * M + m.
template <int64_t kM, int64_t kN, int64_t kK, bool kTransposed, class Rows, class T, class Epilogue>
struct BatchedMatmul {
  using Product = Gemm<kN, kK, Rows, float, Epilogue>;
  static constexpr int64_t kBlockRows = min_of(Product::kBlockRows, round_up(kM, kTileRows));
  static constexpr int64_t kBlocks = ceil_div(kM, kBlockRows);

  struct Worker {
    typename Product::Worker product;
    alignas(64) float panels[Product::kPanels * Product::kPanelSize];
  };

  static constexpr uint64_t scratch(int threads) {
    return uint64_t(threads) * (sizeof(TaskRange) + sizeof(Worker));
  }

  // Item i of B starts at b + offset(i); its rows are `stride` elements apart.
  template <class Offset>
  static int run(const Call& call, int64_t items, const Rows& rows, const T* b, int64_t stride,
                 const Offset& offset, const Epilogue& epilogue) {
    const int workers = call.exec->threads();
    TaskRange* ranges = static_cast<TaskRange*>(call.scratch);
    Worker* state = reinterpret_cast<Worker*>(ranges + workers);
    split_tasks(ranges, items * kBlocks, workers);
    parallel_for(call.exec, workers, [&](int64_t w, int) {
      Worker& worker = state[w];
      int64_t packed = -1;
      for (int64_t task; (task = claim_task(ranges, w, workers)) >= 0;) {
        const int64_t item = task / kBlocks, block = task % kBlocks * kBlockRows;
        if (item != packed) {
          const T* right = b + offset(item);
          const auto row = [&](int64_t n) { return right + n * stride; };
          if constexpr (kTransposed)
            pack_transposed<kK>(row, kN, worker.panels);
          else
            pack_straight<kN>(row, kK, worker.panels);
        }
        packed = item;
        const int64_t first = item * kM + block, count = min_of(kBlockRows, kM - block);
        Product::begin_block(worker.product, rows, epilogue, first, count);
        for (int64_t p = 0; p < Product::kPanels; p += Product::kGroup)
          Product::run_panels(worker.product, rows, worker.panels, epilogue, first, count, p);
      }
    });
    return 0;
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
