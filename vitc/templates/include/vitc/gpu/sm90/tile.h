// A tile configuration, the ring of shared-memory stages that feeds it, and how its sums become
// output.
#pragma once

#include <type_traits>

#include "vitc/gpu/epilogue.cuh"
#include "vitc/gpu/sm90/mbarrier.h"
#include "vitc/gpu/sm90/tma.h"
#include "vitc/gpu/sm90/wgmma.h"

namespace vitc::gpu::sm90 {

constexpr int kWarpgroup = 128;

// The thread's warpgroup. Broadcast, so that the compiler knows it, and all that follows from it,
// to be the same in every lane: else addresses, loops and descriptors take vector registers, and
// each descriptor goes from there to where products read it (up to a fifth of all instructions).
VITC_DEVICE int warpgroup() { return int(shuffle(unsigned(thread() / kWarpgroup), 0)); }

// Weights are packed: within 32 rows of W, row 8 j + 2 q + e of the packed matrix is row 8 q + 2 j
// + e. So the 8 sums that a thread holds of 32 columns of the product (wgmma.h) are 8 neighbouring
// columns of the output: 16-byte loads and stores straight from registers, without a way through
// shared memory.
constexpr int kColumnGroup = 32;
constexpr int kVector = 8;
template <int kN>
constexpr int kPackedRows =
    (kN + kColumnGroup - 1) / kColumnGroup * kColumnGroup;  // the rest is zeros

// kRows x kColumns are what one consumer warpgroup multiplies at a time; there are kConsumers of
// them. kPingPong: each has a tile of its own, and one multiplies while the other writes its sums
// out. Otherwise they share a tile of kConsumers * kRows rows. kCluster blocks share each tile of
// weights. With kFetch, operands of every tile's epilogue are brought to L2 ahead, else only those
// of the last. With kBackwards, work goes from the last rows to the first.
template <class T_, int kRows_, int kColumns_, int kStages_, int kConsumers_, bool kPingPong_,
          int kCluster_, bool kFetch_ = true, bool kBackwards_ = false>
struct GemmTile {
  using T = T_;
  static constexpr int kRows = kRows_, kColumns = kColumns_, kStages = kStages_;
  static constexpr int kConsumers = kConsumers_, kCluster = kCluster_;
  static constexpr bool kPingPong = kPingPong_, kFetch = kFetch_, kBackwards = kBackwards_;
  static constexpr int kTileRows = kPingPong ? kRows : kRows * kConsumers;
  static constexpr int kBytesA = kTileRows * kTileBytes, kBytesB = kColumns * kTileBytes;
  static constexpr int kThreads = kWarpgroup * (1 + kConsumers);
  static constexpr int kSharedBytes = kStages * (kBytesA + kBytesB + 2 * int(sizeof(Barrier))) +
                                      4 * int(sizeof(Barrier)) + 2 * kTileRows * int(sizeof(float));
  static_assert(kRows % 64 == 0 && kColumns % kColumnGroup == 0 && kColumns % (8 * kCluster) == 0);
  static_assert(kConsumers == 2 || (kConsumers == 3 && !kPingPong));
};

// The stages: tiles of A, tiles of W, and for each stage a barrier that says it is full and one
// that says it is empty.
template <class Tile>
struct Ring {
  char* memory;  // one pointer: each would take registers of the consumers

  VITC_DEVICE char* tile_a(int slot) const { return memory + slot * Tile::kBytesA; }
  VITC_DEVICE char* tile_b(int slot) const {
    return memory + Tile::kStages * Tile::kBytesA + slot * Tile::kBytesB;
  }
  VITC_DEVICE Barrier* full(int slot) const {
    return reinterpret_cast<Barrier*>(memory + Tile::kStages * (Tile::kBytesA + Tile::kBytesB)) +
           slot;
  }
  VITC_DEVICE Barrier* empty(int slot) const { return full(Tile::kStages + slot); }
  VITC_DEVICE Barrier* end() const { return full(2 * Tile::kStages); }

  // One thread. A stage is empty when one lane of each of `warps` consumer warps has said so.
  VITC_DEVICE void init(int warps) const {
    for (int slot = 0; slot < Tile::kStages; ++slot) {
      barrier_init(full(slot), 1);
      barrier_init(empty(slot), warps);
    }
    barrier_init_done();
  }
};

// Where a producer or a consumer is in the ring.
template <class Tile>
struct Position {
  int slot = 0;
  unsigned parity = 0;

  VITC_DEVICE void skip(int steps) {
    slot = steps % Tile::kStages;
    parity = unsigned(steps / Tile::kStages) & 1;
  }
  VITC_DEVICE void next() {
    if (++slot == Tile::kStages) {
      slot = 0;
      parity ^= 1;
    }
  }
};

// A warpgroup's sums of a kRows x kColumns tile.
template <class T, int kRows, int kColumns>
struct Sums {
  static constexpr int kBlocks = kRows / 64, kWidth = kColumns;
  float d[kBlocks][kColumns / 2];

  // One step of 64 columns of A and W; `first` writes the sums, later ones add to them.
  template <bool kFirst>
  VITC_DEVICE void multiply(const char* tile_a, const char* tile_b) {
    const uint64_t a = tile_descriptor(tile_a), b = tile_descriptor(tile_b);
    products_begin();
    VITC_UNROLL
    for (int k = 0; k < kTileDepth / 16; ++k) {
      VITC_UNROLL
      for (int block = 0; block < kBlocks; ++block) {
        const uint64_t rows = a + block * 64 * kNextRow + k * kNextColumns;
        if constexpr (kFirst) {
          if (k == 0) {
            Product<T, kColumns>::multiply_first(d[block], rows, b);
            continue;
          }
        }
        Product<T, kColumns>::multiply_add(d[block], rows, b + k * kNextColumns);
      }
    }
    products_commit();
  }

  VITC_DEVICE void finish() {
    products_wait<0>();
    VITC_UNROLL
    for (int block = 0; block < kBlocks; ++block) products_use(d[block]);
  }

  // Row of the warpgroup's tile whose sums get() gives for (block, half).
  static VITC_DEVICE int row(int block, int half) {
    return block * 64 + thread() % kWarpgroup / kWarp * 16 + lane() / 4 + half * 8;
  }
  // Rows from the thread's first to its i-th: its rows are numbered 2 * block + half.
  static constexpr VITC_HOST_DEVICE int row_of(int i) { return i / 2 * 64 + i % 2 * 8; }
  // First of the 8 columns of a group.
  static VITC_DEVICE int column(int group) { return group * kColumnGroup + lane() % 4 * kVector; }

  VITC_DEVICE void get(float (&v)[kVector], int block, int half, int group) const {
    VITC_UNROLL
    for (int i = 0; i < kVector; ++i) v[i] = d[block][group * 16 + i / 2 * 4 + half * 2 + i % 2];
  }
};

// Whether a functor has one operand that goes with the row, such as a residual: row_operand(m, n)
// tells where it lies, and steps_with(m, n, v, row_scale, operand) are the steps with its values
// read from `operand`.
template <class Epilogue, class = void>
constexpr bool kHasRowOperand = false;
template <class Epilogue>
constexpr bool kHasRowOperand<Epilogue, std::enable_if_t<Epilogue::kRowOperand>> = true;

// How a warpgroup's sums go through the epilogue: piece by piece, each of a few of a thread's rows
// and column groups. With an operand that is loaded ahead (kLoads) groups go in pairs, which fill
// lines of 128 bytes where tiles begin on one, or in threes where tiles are as wide: an output
// often lies where the residual was read, and a store to a line of which a load is under way waits
// for it, which has made kernels up to three times slower (benchmarks/h100/log.md, 34).
template <class Sums, bool kLoads>
struct Pieces {
  static constexpr int kGroups = Sums::kWidth / kColumnGroup, kLines = Sums::kBlocks * 2;
  static constexpr int kAcross = !kLoads || kGroups == 1 ? 1 : kGroups == 3 ? 3 : 2;
  static constexpr int kDown = kLoads ? 2 : kLines > 4 ? kLines / 2 : kLines;
  static constexpr int kCount = kLines / kDown * divide_up(kGroups, kAcross);
  // Whether sums take the registers that a first operand in flight would need.
  static constexpr bool kFull = sizeof(Sums) / sizeof(float) >= 192;

  static constexpr VITC_HOST_DEVICE int line(int piece) { return piece % (kLines / kDown) * kDown; }
  static constexpr VITC_HOST_DEVICE int group(int piece) {
    return piece / (kLines / kDown) * kAcross;
  }
  static constexpr VITC_HOST_DEVICE int groups(int piece) {
    return kGroups - group(piece) < kAcross ? kGroups - group(piece) : kAcross;
  }
};

// kVector elements as they were loaded, in whole registers: nvcc takes halves apart where they are
// loaded, which would wait for them there.
template <class T>
struct Loaded {
  static_assert(kVector * sizeof(T) == 16);
  uint32_t word[4] = {};

  VITC_DEVICE void load(const T* from) { gpu::load(word, reinterpret_cast<const uint32_t*>(from)); }
  VITC_DEVICE void get(T (&v)[kVector]) const { memcpy(v, word, sizeof(v)); }
};

// That operand for a piece. It is loaded as soon as the piece before has been added, ahead of that
// one's stores, which it could otherwise not pass. The first is loaded while products still run
// (kEarly), unless 192 sums leave no registers for it; then the second waits for the first one's
// stores, too. Beside row scales there are none at all.
template <int kN, class Sums, class T, class Epilogue>
struct RowOperands {
  static constexpr bool kAhead = kHasRowOperand<Epilogue> && !Epilogue::kRowScale;
  using P = Pieces<Sums, kAhead>;
  static constexpr bool kEarly = kAhead && !P::kFull;
  Loaded<T> loaded[kAhead ? P::kDown : 1][P::kAcross];

  // What lies outside the output stays as it is.
  VITC_DEVICE void load(int piece, int m, int first_m, int first_n, const Epilogue& epilogue) {
    if constexpr (kAhead) {
      VITC_UNROLL
      for (int j = 0; j < P::kDown; ++j) {
        const int row = first_m + Sums::row(0, 0) + Sums::row_of(P::line(piece) + j);
        VITC_UNROLL
        for (int g = 0; g < P::groups(piece); ++g) {
          const int column = first_n + Sums::column(P::group(piece) + g);
          if (row < m && (kN % Sums::kWidth == 0 || column < kN))
            loaded[j][g].load(epilogue.row_operand(row, column));
        }
      }
    }
  }
};

// The scales of a thread's rows, from shared memory.
template <class Sums, class Epilogue>
VITC_DEVICE void read_scales(float (&scales)[Sums::kBlocks * 2], const float* row_scale) {
  VITC_UNROLL
  for (int i = 0; i < Sums::kBlocks * 2; ++i) {
    scales[i] = Epilogue::kRowScale ? row_scale[Sums::row(i / 2, i % 2)] : 1.f;
  }
}

// Statistics of a tile's slices of kSlice columns for one row, which four lanes share. What they
// leave lies side by side and is stored at once: a slice at a time, each store would be 4 bytes of
// a sector that L2 has to merge.
template <int kN, int kSlice, int kColumns, class Epilogue>
struct SliceStatistics {
  using Statistics = typename Epilogue::Statistics;
  static constexpr int kEach = Statistics::kNumbers, kLanes = 4;
  static constexpr int kNumbers = kColumns / kSlice * kEach;
  static constexpr int kRowNumbers = divide_up(kN, kSlice) * kEach;
  static constexpr bool kPairs = kNumbers % 2 == 0 && kRowNumbers % 2 == 0;
  static constexpr bool kQuads = kNumbers % 4 == 0 && kRowNumbers % 4 == 0;
  static constexpr int kWide = kQuads && kNumbers > 2 * kLanes ? 4
                               : kPairs && kNumbers > kLanes   ? 2
                                                               : 1;
  static constexpr int kPieces = kNumbers / kWide;
  static_assert(kEach == 0 || (kSlice % kColumnGroup == 0 && kColumns % kSlice == 0));

  Statistics running;
  float numbers[kEach > 0 ? kNumbers : 1];

  template <int V>
  VITC_DEVICE void add(const float (&v)[V]) {
    running.add(v);
  }
  // Slice `i` of the tile has been added.
  VITC_DEVICE void next(int i) {
    if constexpr (kEach > 0) {
      running.template total<kLanes>().write(numbers + i * kEach);
      running = {};
    }
  }
  // Stores those of a row whose first slice of the tile is `first`.
  VITC_DEVICE void store(int row, int first, const Epilogue& epilogue) const {
    if constexpr (kEach > 0) {
      const int mine = lane() % kLanes;
      float* to = epilogue.statistics_at(row, first) + mine * kWide;
      VITC_UNROLL
      for (int p = 0; p < kPieces; p += kLanes) {
        float piece[kWide];
        VITC_UNROLL
        for (int i = 0; i < kWide; ++i) {
          piece[i] = numbers[p * kWide + i];
          VITC_UNROLL
          for (int l = 1; l < kLanes && p + l < kPieces; ++l) {
            if (mine == l) piece[i] = numbers[(p + l) * kWide + i];
          }
        }
        const bool inside =
            p + mine < kPieces &&
            (kN % kColumns == 0 || first * kEach + (p + mine) * kWide < kRowNumbers);
        if (inside) gpu::store<kWide>(to + p * kWide, piece);
      }
    }
  }
};

// Passes a warpgroup's tile through the epilogue. Of a piece, all loads come before the first
// store: the compiler could not move a load before a store that may be to the same place, and each
// would wait for memory alone. Rows past the end compute something, too, and are not stored.
// Statistics speak of kSlice columns, which one tile has all of.
template <int kN, int kSlice, class Sums, class T, class Epilogue>
VITC_DEVICE void write_out(const Sums& sums, int m, int first_m, int first_n,
                           const float (&scales)[Sums::kBlocks * 2],
                           RowOperands<kN, Sums, T, Epilogue>& operands, const Epilogue& epilogue) {
  using Operands = RowOperands<kN, Sums, T, Epilogue>;
  using P = typename Operands::P;
  constexpr int kSliceGroups = kSlice / kColumnGroup;
  SliceStatistics<kN, kSlice, Sums::kWidth, Epilogue> statistics[P::kLines];
  if constexpr (!Operands::kEarly) operands.load(0, m, first_m, first_n, epilogue);
  VITC_UNROLL
  for (int piece = 0; piece < P::kCount; ++piece) {
    const int row = first_m + Sums::row(0, 0);
    const auto at_row = [&](int j) { return row + Sums::row_of(P::line(piece) + j); };
    const auto at_column = [&](int g) { return first_n + Sums::column(P::group(piece) + g); };
    const auto inside = [&](int g) { return kN % Sums::kWidth == 0 || at_column(g) < kN; };
    float v[P::kDown][P::kAcross][kVector];
    VITC_UNROLL
    for (int g = 0; g < P::groups(piece); ++g) {
      if (!inside(g)) continue;
      VITC_UNROLL
      for (int j = 0; j < P::kDown; ++j) {
        const int i = P::line(piece) + j, clamped = minimum(at_row(j), m - 1);
        sums.get(v[j][g], i / 2, i % 2, P::group(piece) + g);
        if constexpr (Operands::kAhead) {
          alignas(16) T operand[kVector];
          operands.loaded[j][g].get(operand);
          epilogue.steps_with(clamped, at_column(g), v[j][g], scales[i], operand);
        } else {
          epilogue.steps(clamped, at_column(g), v[j][g], scales[i]);
        }
      }
    }
    // Behind the first piece of 192 sums there are no registers before v is stored.
    const bool room = !P::kFull || piece > 0;
    if (room && piece + 1 < P::kCount) operands.load(piece + 1, m, first_m, first_n, epilogue);
    VITC_UNROLL
    for (int j = 0; j < P::kDown; ++j) {
      auto& row_statistics = statistics[P::line(piece) + j];
      VITC_UNROLL
      for (int g = 0; g < P::groups(piece); ++g) {
        if (inside(g)) {
          epilogue.store(at_row(j), at_column(g), v[j][g], at_row(j) < m);
          row_statistics.add(v[j][g]);
        }
        const int groups = P::group(piece) + g + 1;
        if (groups % kSliceGroups == 0) row_statistics.next(groups / kSliceGroups - 1);
      }
    }
    if (!room && piece + 1 < P::kCount) operands.load(piece + 1, m, first_m, first_n, epilogue);
  }
  VITC_UNROLL
  for (int i = 0; i < P::kLines; ++i) {
    const int row = opaque(first_m) + Sums::row(i / 2, i % 2);
    if (row < m) statistics[i].store(row, opaque(first_n) / kSlice, epilogue);
  }
}

}  // namespace vitc::gpu::sm90
