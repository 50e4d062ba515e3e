// Brings tiles of an operand from global to shared memory: by cp.async where the hardware and the
// source allow it, else through registers, converting if the types differ.
#pragma once

#include "vitc/gpu/ptx.h"
#include "vitc/gpu/source.cuh"
#include "vitc/gpu/tile.h"

namespace vitc::gpu {

template <class A, class B>
struct SameType {
  static constexpr bool value = false;
};
template <class A>
struct SameType<A, A> {
  static constexpr bool value = true;
};

// kRows rows of an operand whose elements are stored as S in tiles of `Layout`; kThreads threads
// share the work, each always for the same chunk of a row. Rows at or past `rows` and elements at
// or past kK are zeros.
template <class S, class Source, class Layout, int kRows, int kThreads, int kK, bool kAsyncCopies>
class TileLoader {
 public:
  static constexpr bool kAsync =
      kAsyncCopies && Source::kVector && SameType<S, typename Source::T>::value;

  VITC_DEVICE TileLoader(const Source& source, int first_row, int rows) : source_(source) {
    VITC_UNROLL
    for (int i = 0; i < kShare; ++i) {
      int row = first_row + thread() / Layout::kChunks + i * kRowsAtOnce;
      inside_ |= row < rows ? 1u << i : 0u;
      row_[i] = source_.row(minimum(row, rows - 1));
    }
  }

  // Begins to bring the tile at k into `tile`.
  VITC_DEVICE void start(char* tile, int k) {
    k += thread() % Layout::kChunks * kElements;
    VITC_UNROLL
    for (int i = 0; i < kShare; ++i) {
      bool inside = (inside_ >> i & 1) && (kWholeK || k < kK);
      if constexpr (kAsync) {
        const int at = inside ? source_.at(row_[i], k) : -1;
        async_copy_16(tile + place(i), source_.base() + maximum(at, 0), at >= 0);
      } else {
        fetch(held_[i].v, row_[i], k, inside);
      }
    }
  }

  // Ends what start() began, except for waiting for asynchronous copies.
  VITC_DEVICE void finish(char* tile) {
    if constexpr (!kAsync) {
      VITC_UNROLL
      for (int i = 0; i < kShare; ++i)
        store<kElements>(reinterpret_cast<S*>(tile + place(i)), held_[i].v);
    }
  }

 private:
  static constexpr int kElements = 16 / int(sizeof(S));  // of a chunk
  static constexpr int kRowsAtOnce = kThreads / Layout::kChunks, kShare = kRows / kRowsAtOnce;
  static constexpr bool kWholeK = kK % (Layout::kRowBytes / int(sizeof(S))) == 0;
  static_assert(kThreads % Layout::kChunks == 0 && kRows % kRowsAtOnce == 0 && kShare <= 32,
                "the threads must share the rows of a tile evenly");

  static VITC_DEVICE int place(int i) {
    int row = thread() / Layout::kChunks + i * kRowsAtOnce;
    return Layout::offset(row, thread() % Layout::kChunks);
  }

  VITC_DEVICE void fetch(S (&v)[kElements], const typename Source::Row& row, int k, bool inside) {
    if constexpr (Source::kVector) {
      VITC_UNROLL
      for (int e = 0; e < kElements; ++e) v[e] = from_float<S>(0.f);
      const int at = inside ? source_.at(row, k) : -1;
      if (at < 0) return;
      auto* from = source_.base() + at;
      if constexpr (SameType<S, typename Source::T>::value) {
        load<kElements>(v, from);
      } else {
        float wide[kElements];
        load_floats<kElements>(wide, from);
        VITC_UNROLL
        for (int e = 0; e < kElements; ++e) v[e] = from_float<S>(wide[e]);
      }
    } else {
      // No branch around a load: all of them are under way before the first is waited for.
      VITC_UNROLL
      for (int e = 0; e < kElements; ++e) {
        const int at = source_.at(row, minimum(k + e, kK - 1));
        const bool there = inside && k + e < kK && at >= 0;
        const auto value = source_.base()[there ? at : 0];
        if constexpr (SameType<S, typename Source::T>::value) {
          v[e] = there ? value : from_float<S>(0.f);
        } else {
          v[e] = from_float<S>(there ? to_float(value) : 0.f);
        }
      }
    }
  }

  Source source_;
  typename Source::Row row_[kShare];
  uint32_t inside_ = 0;
  Vector<S, kElements> held_[kAsync ? 1 : kShare];
};

}  // namespace vitc::gpu
