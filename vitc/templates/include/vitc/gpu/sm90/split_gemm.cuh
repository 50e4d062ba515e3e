// Y[M, N] = epilogue(A[M, K] * W[N, K]^T) on Hopper, for few rows, where the time is that of
// reaching memory.
//
// A cluster of kSplit blocks computes one tile; each block takes its part of K and finishes its
// share of the rows: the others write their sums of these into its shared memory, where a barrier
// counts them; it adds them up in the order of the parts. What goes with rows and columns is there
// by then: between the last product and the output nobody waits for memory. Weights of the first
// kStages steps are requested before the kernel before this one has ended.
#pragma once

#include "vitc/gpu/sm90/launch.h"
#include "vitc/gpu/sm90/tile.h"

namespace vitc::gpu::sm90 {

// A tile of 64 kGroups rows, 64 to each warpgroup. Block i of a cluster finishes rows kShare i to
// kShare (i + 1), the last one what is left.
template <class T_, int kColumns_, int kStages_, int kSplit_, int kGroups_ = 1>
struct SplitTile {
  using T = T_;
  static constexpr int kColumns = kColumns_, kStages = kStages_, kSplit = kSplit_;
  static constexpr int kGroups = kGroups_, kRows = 64 * kGroups;
  static constexpr int kBytesA = kRows * kTileBytes, kBytesB = kColumns * kTileBytes;
  static constexpr int kConsumers = kGroups * kWarpgroup, kThreads = kConsumers + kWarp;
  static constexpr int kShare = divide_up(kRows, kSplit), kPart = kShare * kColumns;
  // What the others send has a place of its own before the stages, which are in use until this
  // block's last product; they may be done earlier. Stages are aligned to 1024 bytes.
  static constexpr int kReceiveBytes = divide_up((kSplit - 1) * kPart * 4, 1024) * 1024;
  static constexpr int kRingBytes = kStages * (kBytesA + kBytesB + 2 * int(sizeof(Barrier)));
  static constexpr int kSharedBytes =
      kReceiveBytes + kRingBytes + int(sizeof(Barrier)) + (kShare + 1) * int(sizeof(float));
  static_assert(kColumns % kColumnGroup == 0 && kSplit <= 8);
  static_assert(kSplit == 1 || kStages * (kBytesA + kBytesB) >= kPart * int(sizeof(float)));
};

// Sums of a block's share of the rows in its memory: those of one part begin here. Its own come
// last, over stages that it no longer needs. Of 8 columns the first 4 and the last 4 change places
// from row to row and from 32 columns to the next: neither writing nor reading has bank conflicts.
template <class Tile>
VITC_DEVICE float* sums_of(char* memory, int owner, int part) {
  const unsigned slot = unsigned(part - owner + Tile::kSplit - 1) % Tile::kSplit;
  return reinterpret_cast<float*>(memory) + slot * Tile::kPart;
}

// How many rows of a tile a block finishes: none where the matrix ends before.
template <class Tile>
VITC_DEVICE int share_of(int rank, int m, int first_m) {
  const int begin = rank * Tile::kShare;
  return minimum(minimum(int(Tile::kRows), m - first_m) - begin, int(Tile::kShare));
}

// Sends a warpgroup's sums of the tile's rows before `end` to the blocks that finish them.
template <class Tile, class Sums>
VITC_DEVICE void send_sums(const Sums& sums, char* memory, Barrier* received, int end,
                           int group_row, int rank) {
  VITC_UNROLL
  for (int i = 0; i < 2; ++i) {
    const int row = group_row + Sums::row(0, i);
    const int owner = int(unsigned(row) / Tile::kShare), local = row - owner * Tile::kShare;
    if (row >= end) continue;
    float* first = sums_of<Tile>(memory, owner, rank) + local * Tile::kColumns + Sums::column(0);
    float* halves[2] = {first + (local & 1) * 4, first + 4 - (local & 1) * 4};
    const auto put = [&](const auto& four_to) {
      VITC_UNROLL
      for (int group = 0; group < Tile::kColumns / kColumnGroup; ++group) {
        float v[kVector];
        sums.get(v, 0, i, group);
        VITC_UNROLL
        for (int half = 0; half < 2; ++half) {
          const float four[4] = {v[half * 4], v[half * 4 + 1], v[half * 4 + 2], v[half * 4 + 3]};
          four_to(four, halves[(group + half) % 2] + group * kColumnGroup);
        }
      }
    };
    if (owner == rank) {
      put([&](const float (&four)[4], float* to) { store<4>(to, four); });
    } else {
      put([&](const float (&four)[4], float* to) { send_to(four, to, received, unsigned(owner)); });
    }
  }
}

// A block's share of a tile, `rows` rows from first_m on (at least 1), 8 columns a thread and turn.
// What lies past the end computes what the last row or column does, and is not stored.
template <class Tile, int kN, int kSlice, class Epilogue>
struct Share {
  static constexpr int kAcross = Tile::kColumns / kVector;
  static constexpr int kTurns = divide_up(Tile::kShare * kAcross, Tile::kConsumers);
  static constexpr bool kAhead = kHasRowOperand<Epilogue>;
  int rows, first_m, first_n;
  Loaded<typename Tile::T> operands[kAhead ? kTurns : 1];

  static VITC_DEVICE unsigned index(int turn) {
    return unsigned(thread() + turn * Tile::kConsumers);
  }
  static VITC_DEVICE int y(int turn) { return int(index(turn) / kAcross); }
  static VITC_DEVICE int x(int turn) { return int(index(turn) % kAcross * kVector); }
  VITC_DEVICE int local(int turn) const { return minimum(y(turn), rows - 1); }
  VITC_DEVICE int row(int turn) const { return first_m + local(turn); }
  VITC_DEVICE int column(int turn) const { return minimum(first_n + x(turn), kN - kVector); }
  VITC_DEVICE bool inside(int turn) const {
    return y(turn) < rows && (kN % Tile::kColumns == 0 || first_n + x(turn) < kN);
  }

  VITC_DEVICE void load_operands(const Epilogue& epilogue) {
    if constexpr (kAhead) {
      VITC_UNROLL
      for (int turn = 0; turn < kTurns; ++turn)
        operands[turn].load(epilogue.row_operand(row(turn), column(turn)));
    }
  }

  VITC_DEVICE void add_up(float (&v)[kVector], char* memory, int rank, int turn) const {
    const int swapped = (local(turn) + x(turn) / kColumnGroup) & 1;
    VITC_UNROLL
    for (int part = 0; part < Tile::kSplit; ++part) {
      const float* first =
          sums_of<Tile>(memory, rank, part) + local(turn) * Tile::kColumns + x(turn);
      VITC_UNROLL
      for (int half = 0; half < 2; ++half) {
        float four[4];
        load(four, first + (half == 0 ? swapped * 4 : 4 - swapped * 4));
        VITC_UNROLL
        for (int c = 0; c < 4; ++c) {
          float& sum = v[half * 4 + c];
          sum = part == 0 ? four[c] : sum + four[c];
        }
      }
    }
  }

  // All consumer threads come here. All steps come before the first store, which may lie where
  // another turn's operands are read.
  VITC_DEVICE void write_out(char* memory, int rank, const float* row_scale,
                             const Epilogue& epilogue) const {
    float v[kTurns][kVector];
    VITC_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      add_up(v[turn], memory, rank, turn);
      const float scale = Epilogue::kRowScale ? row_scale[local(turn)] : 1.f;
      if constexpr (kAhead) {
        alignas(16) typename Tile::T operand[kVector];
        operands[turn].get(operand);
        epilogue.steps_with(row(turn), column(turn), v[turn], scale, operand);
      } else {
        epilogue.steps(row(turn), column(turn), v[turn], scale);
      }
    }
    VITC_UNROLL
    for (int turn = 0; turn < kTurns; ++turn) {
      typename Epilogue::Statistics slice;
      if (inside(turn)) {
        epilogue.store(row(turn), column(turn), v[turn]);
        slice.add(v[turn]);
      }
      if constexpr (Epilogue::Statistics::kNumbers > 0) {
        static_assert(Tile::kColumns % kSlice == 0 && kWarp % (kSlice / kVector) == 0);
        slice = slice.template total<kSlice / kVector>();
        if (inside(turn) && column(turn) % kSlice == 0)
          epilogue.statistics(row(turn), column(turn) / kSlice, slice);
      }
    }
  }
};

// Brings what the steps read of the tile's columns, such as a bias, into the nearest cache: one
// warp takes the steps for nothing. It stores what comes of them, else ptxas would leave them out.
template <class Tile, int kN, class Epilogue>
VITC_DEVICE void fetch_columns(int row, int first_n, float* unread, const Epilogue& epilogue) {
  static_assert(Tile::kColumns <= kWarp * kVector);
  const int column = first_n + lane() * kVector;
  if (lane() >= Tile::kColumns / kVector || column >= kN) return;
  float v[kVector] = {};
  if constexpr (kHasRowOperand<Epilogue>) {
    alignas(16) const typename Tile::T zeros[kVector] = {};
    epilogue.steps_with(row, column, v, 1.f, zeros);
  } else {
    epilogue.steps(row, column, v, 1.f);
  }
  *unread = v[0];
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
  const Ring<Tile> ring{memory + Tile::kReceiveBytes};
  Barrier* received = ring.end();
  float* row_scale = reinterpret_cast<float*>(received + 1);
  const int tile = block() / Tile::kSplit, rank = block() % Tile::kSplit;
  const int first_m = tile / kTilesN * Tile::kRows, first_n = tile % kTilesN * Tile::kColumns;
  const int first_step = kAllSteps * rank / Tile::kSplit;
  const int steps = kAllSteps * (rank + 1) / Tile::kSplit - first_step;
  const int share_m = first_m + rank * Tile::kShare;
  const int share_rows = share_of<Tile>(rank, m, first_m);
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
    if constexpr (Tile::kSplit > 1) {
      barrier_init(received, 1);
      barrier_expect(received, maximum(share_rows, 0) * (Tile::kSplit - 1) * Tile::kColumns * 4);
    }
    ring.init(Tile::kConsumers / kWarp);
    VITC_NO_UNROLL
    for (int step = 0; step < ahead; ++step) copy_weights(step, step);
    let_next_kernel_start();  // at once: where two blocks fit, its weights come while this one
                              // works
  }
  if constexpr (Tile::kSplit > 1) {
    sync_warp();
    cluster_start();
  } else {
    sync_block();
  }
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
      if (thread() < Tile::kShare)
        row_scale[thread()] = epilogue.row_scale(minimum(share_m + thread(), m - 1));
    }
    if (warp() == Tile::kConsumers / kWarp - 1)
      fetch_columns<Tile, kN>(first_m, first_n, row_scale + Tile::kShare, epilogue);
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
    if constexpr (Tile::kSplit == 1) {
      RowOperands<kN, TileSums, typename Tile::T, Epilogue> operands;
      if constexpr (decltype(operands)::kEarly)
        operands.load(0, m, first_m + group_row, first_n, epilogue);
      sums.finish();
      named_sync(1, Tile::kConsumers);  // the row scales are there
      float scales[2];
      read_scales<TileSums, Epilogue>(scales, row_scale + group_row);
      write_out<kN, kSlice>(sums, m, first_m + group_row, first_n, scales, operands, epilogue);
    } else {
      Share<Tile, kN, kSlice, Epilogue> share{share_rows, share_m, first_n, {}};
      constexpr bool kEarly = Tile::kColumns < 192;  // beside more sums there are no registers
      if (kEarly && share_rows > 0) share.load_operands(epilogue);
      sums.finish();
      named_sync(1, Tile::kConsumers);  // all warps' products have read the stages
      send_sums<Tile>(sums, memory, received, m - first_m, group_row, rank);
      if (share_rows > 0) {
        if (!kEarly) share.load_operands(epilogue);
        named_sync(1, Tile::kConsumers);  // the block's own part is there
        barrier_wait(received, 0);
        share.write_out(memory, rank, row_scale, epilogue);
      }
    }
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
