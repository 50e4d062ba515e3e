// out = epilogue(A * W^T): A [M, K] through a row functor, W [N, K] packed in panels of 32 columns.
//
// The work is cut into blocks of rows (A's share of L2) times groups of panels; a worker goes
// through its blocks one by one, so rows are copied and row states computed once per block.
#pragma once
#include "vitc/cpu/math.h"
#include "vitc/cpu/operands.h"
#include "vitc/cpu/tasks.h"
#include "vitc/cpu/tile.h"
#include "vitc/kernel.h"

namespace vitc {
inline namespace VITC_ISA {

template <int64_t kN, int64_t kK, class Rows, class W, class Epilogue>
struct Gemm {
  using P = Product<W>;
  using Operand = typename P::Operand;
  using Row = typename Epilogue::Row;

  static constexpr int64_t kPanels = ceil_div(kN, kPanel);
  static constexpr int64_t kSteps = ceil_div(kK, P::kStep);
  static constexpr int64_t kPanelSize = kSteps * P::kStep * kPanel;
  static constexpr int64_t kGroup = Epilogue::kSlice ? Epilogue::kSlice / kPanel : 1;
  static constexpr int64_t kGroups = ceil_div(kPanels, kGroup);
  static_assert(Epilogue::kSlice % kPanel == 0, "a statistic covers whole panels");

  // Rows are read where they are unless they need converting, K is odd under bf16 products, or
  // their distance would put a tile's rows into the same few sets of L1.
  static constexpr bool kInPlace =
      Rows::kStride > 0 &&
      Rows::kStride <= 4 * kK&& kSameType<typename Rows::Element, Operand>&& kK % P::kStep == 0 &&
      Rows::kStride* int64_t{sizeof(Operand)} % 2048 != 0;
  static constexpr int64_t kStride =
      kInPlace ? Rows::kStride : packed_stride(kSteps * P::kStep, sizeof(Operand));

  // Half of a 1 MiB L2 for the block of A; the rest is for panels on their way.
  static constexpr int64_t kBlockBytes = 448 * 1024;
  static constexpr int64_t kBlockRows = min_of<int64_t>(
      240, max_of<int64_t>(1, kBlockBytes / (kStride * int64_t{sizeof(Operand)}) / kTileRows) *
               kTileRows);
  static constexpr int64_t kCopiedRows = kInPlace ? kTileRows : kBlockRows;

  struct Worker {
    alignas(64) float tile[kTileRows * kPanel];
    alignas(64) Row rows[kBlockRows];
    alignas(64) Operand copied[kCopiedRows * kStride];
  };

  static constexpr uint64_t scratch(int threads) {
    return uint64_t(threads) * (sizeof(TaskRange) + sizeof(Worker));
  }

  static int run(const Call& call, int64_t m, const Rows& rows, const W* weights,
                 const Epilogue& epilogue) {
    if (m <= 0) return 0;
    const int workers = call.exec->threads();
    TaskRange* ranges = static_cast<TaskRange*>(call.scratch);
    Worker* state = reinterpret_cast<Worker*>(ranges + workers);

    // Enough tasks to keep all workers busy to the end. Copying a block is only worth it for one
    // worker, so then there should be a block for each.
    const int64_t tiles = ceil_div(m, kTileRows);
    int64_t blocks = ceil_div(m, kBlockRows);
    const int64_t wanted = kInPlace ? ceil_div(4 * workers, kGroups) : workers;
    blocks = min_of(max_of(blocks, wanted), tiles);
    const int64_t block_rows = ceil_div(tiles, blocks) * kTileRows;
    blocks = ceil_div(m, block_rows);

    split_tasks(ranges, blocks * kGroups, workers);
    parallel_for(call.exec, workers, [&](int64_t w, int) {
      Worker& worker = state[w];
      int64_t current = -1;
      for (int64_t task; (task = claim_task(ranges, w, workers)) >= 0;) {
        const int64_t block = task / kGroups, first = block * block_rows;
        const int64_t count = min_of(block_rows, m - first);
        if (block != current) begin_block(worker, rows, epilogue, first, count);
        current = block;
        const int64_t panel = task % kGroups * kGroup;
        run_panels(worker, rows, weights, epilogue, first, count, panel);
      }
    });
    return 0;
  }

  // ---- pieces, for kernels that bring their own loop over blocks (matmul.h) -------------------

  // Prepares rows [first, first + count): their states, and the copies of those not read in place.
  // The rows after the last full tile are copied in any case, to be padded with zero rows.
  [[gnu::noinline]] static void begin_block(Worker& worker, const Rows& rows,
                                            const Epilogue& epilogue, int64_t first,
                                            int64_t count) {
    for (int64_t i = 0; i < count; ++i) worker.rows[i] = epilogue.begin(first + i);
    const int64_t full = count / kTileRows * kTileRows, tail = count - full;
    const int64_t from = kInPlace ? full : 0;
    Operand* dst = worker.copied;
    for (int64_t i = from; i < count; ++i, dst += kStride) {
      rows.copy_row(first + i, dst);
      if constexpr (kK % P::kStep != 0) fill_zero(dst + kK, 1);
    }
    if (tail != 0) fill_zero(dst, (padded_rows(tail) - tail) * kStride);
  }

  // Panels [panel, panel + kGroup) of those rows.
  [[gnu::noinline]] static void run_panels(Worker& worker, const Rows& rows, const W* weights,
                                           const Epilogue& epilogue, int64_t first, int64_t count,
                                           int64_t panel) {
    const int64_t end = min_of(panel + kGroup, kPanels);
    const int64_t full = count / kTileRows * kTileRows, tail = count - full;
    const Operand* a = worker.copied;
    const Operand* last = worker.copied + full * kStride;
    if constexpr (kInPlace) {
      a = rows.data + first * kStride;
      last = tail == 1 ? a + full * kStride : worker.copied;
    }
    for (; panel < end; ++panel) {
      const W* b = weights + panel * kPanelSize;
      // Panels follow each other in memory. A single tile waits for memory, so it looks a little
      // ahead in the stream; several have the time to bring in the next panel, a share each.
      constexpr int64_t kStepBytes = P::kStep * kPanel * int64_t{sizeof(W)};
      const char* stream = reinterpret_cast<const char*>(b);
      const int64_t tiles = full / kTileRows;
      Fetch fetch = {stream + kStepBytes * (tiles > 1 ? kSteps : 32),
                     kStepBytes / min_of<int64_t>(4, max_of<int64_t>(1, tiles))};
      for (int64_t i = 0; i < full; i += kTileRows) {
        multiply_tile<W, kTileRows, kStride>(a + i * kStride, b, kSteps, worker.tile, fetch);
        finish_tile(worker.tile, worker.rows + i, kTileRows, epilogue, panel);
        fetch.from += kSteps * fetch.bytes;
        if (fetch.from - stream >= 2 * kSteps * kStepBytes) fetch.bytes = 0;
      }
      if (tail == 0) continue;
      multiply_rows<W, kStride>(tail, last, b, kSteps, worker.tile, fetch);
      finish_tile(worker.tile, worker.rows + full, tail, epilogue, panel);
    }
    if constexpr (Epilogue::kSlice != 0) {
      for (int64_t i = 0; i < count; ++i)
        epilogue.end_slice(worker.rows[i], first + i, (end - 1) / kGroup);
    }
  }

  static VITC_INLINE void finish_tile(const float* tile, Row* rows, int64_t count,
                                      const Epilogue& epilogue, int64_t panel) {
    const int64_t n = panel * kPanel;
    if (kN % kPanel == 0 || n + kPanel <= kN)
      finish_columns<kPanel>(tile, rows, count, epilogue, n);
    else
      finish_columns<kN % kPanel>(tile, rows, count, epilogue, n);
  }

  template <int kColumns>
  [[gnu::noinline]] static void finish_columns(const float* tile, Row* rows, int64_t count,
                                               const Epilogue& epilogue, int64_t n) {
    if constexpr (kColumns != 0) {
      for (int64_t i = 0; i < count; ++i, tile += kPanel)
        for_lanes(kColumns, [&](int64_t j, auto lanes) {
          epilogue.apply(load(tile + j), rows[i], n + j, lanes);
        });
    }
  }
};

}  // namespace VITC_ISA
}  // namespace vitc
