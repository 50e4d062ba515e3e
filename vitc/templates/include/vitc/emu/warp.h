// Warp collectives. Each lane publishes a pointer to its operands and stops; when the whole warp
// stands at the same collective, the scheduler executes it once, seeing every lane's operands.
//
// Every lane of a full warp must arrive, from the same place in the source: a divergent collective
// is an error here although hardware allows some of it with a smaller mask. New collectives (mma.h,
// ldmatrix.h, MFMA) need only a function over operands[].
#pragma once

#include <cstdint>

#include "vitc/emu/machine.h"

namespace vitc::emu {

inline void warp_collective(const char* name, Collective execute, void* operands, Site site) {
  machine->collective = execute;
  stop(State::at_warp, name, operands, site);
}

inline void sync_warp(Site site = Site::here()) {
  warp_collective("syncwarp", [](void* const*) {}, nullptr, site);
}

template <class T>
struct ShuffleOperands {
  T value, result;
  unsigned source;  // lane
};

template <class T>
T shuffle_from(const char* name, T value, unsigned source, Site site) {
  ShuffleOperands<T> self{value, value, source % kWarp};
  warp_collective(
      name,
      [](void* const* operands) {
        for (unsigned lane = 0; lane < kWarp; ++lane) {
          auto* to = static_cast<ShuffleOperands<T>*>(operands[lane]);
          to->result = static_cast<ShuffleOperands<T>*>(operands[to->source])->value;
        }
      },
      &self, site);
  return self.result;
}

// The four shuffles of CUDA and HIP. `width`: a power of two; lanes form groups of that size. A
// source outside the group gives the lane its own value.
template <class T>
T shuffle(T value, unsigned source, unsigned width = kWarp, Site site = Site::here()) {
  unsigned lane = machine->current->lane;
  return shuffle_from("shuffle", value, (lane & ~(width - 1)) | (source & (width - 1)), site);
}
template <class T>
T shuffle_xor(T value, unsigned mask, unsigned width = kWarp, Site site = Site::here()) {
  unsigned lane = machine->current->lane, source = lane ^ mask;
  bool inside =
      (source & ~(width - 1)) <= (lane & ~(width - 1));  // as shfl.bfly: an earlier group counts
  return shuffle_from("shuffle_xor", value, inside ? source : lane, site);
}
template <class T>
T shuffle_down(T value, unsigned delta, unsigned width = kWarp, Site site = Site::here()) {
  unsigned lane = machine->current->lane;
  return shuffle_from("shuffle_down", value,
                      (lane & (width - 1)) + delta < width ? lane + delta : lane, site);
}
template <class T>
T shuffle_up(T value, unsigned delta, unsigned width = kWarp, Site site = Site::here()) {
  unsigned lane = machine->current->lane;
  return shuffle_from("shuffle_up", value, (lane & (width - 1)) >= delta ? lane - delta : lane,
                      site);
}

// Bit i of the result: lane i's predicate.
inline uint64_t ballot(bool predicate, Site site = Site::here()) {
  struct Operands {
    bool predicate;
    uint64_t result;
  } self{predicate, 0};
  warp_collective(
      "ballot",
      [](void* const* operands) {
        uint64_t bits = 0;
        for (unsigned lane = 0; lane < kWarp; ++lane) {
          bits |= uint64_t(static_cast<Operands*>(operands[lane])->predicate) << lane;
        }
        for (unsigned lane = 0; lane < kWarp; ++lane)
          static_cast<Operands*>(operands[lane])->result = bits;
      },
      &self, site);
  return self.result;
}

}  // namespace vitc::emu
