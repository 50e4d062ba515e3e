// In which order blocks, warps and lanes run, and which do not. A kernel without data races gives
// the same result in every order. Between two barriers warps run one after another, so of two
// conflicting accesses one comes first in the forward order and last in the reverse order: running
// both orders shows every race of values. What takes a warp that is rounds ahead of another one, or
// a lane ahead of its warp, the random order shows: in it some stay behind.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <cstring>

namespace vitc::emu {

class Schedule {
 public:
  enum class Order { forward, reverse, random };

  Schedule() = default;
  explicit Schedule(Order order, uint32_t seed = 0) : order_(order), seed_(seed) {}

  // VITC_EMU_SCHEDULE = forward (default) | reverse | random:SEED
  static Schedule from_environment() {
    const char* text = std::getenv("VITC_EMU_SCHEDULE");
    if (text == nullptr) return Schedule();
    if (std::strcmp(text, "reverse") == 0) return Schedule(Order::reverse);
    if (std::strncmp(text, "random", 6) == 0) {
      return Schedule(Order::random, text[6] == ':' ? uint32_t(std::atoi(text + 7)) : 1);
    }
    return Schedule();
  }

  // Fills order[0..n) with a permutation of 0..n-1; `salt` makes random orders differ between uses.
  void permute(unsigned* order, unsigned n, uint32_t salt) const {
    for (unsigned i = 0; i < n; ++i) order[i] = order_ == Order::reverse ? n - 1 - i : i;
    if (order_ != Order::random) return;
    uint32_t state = start(salt);
    for (unsigned i = n; i > 1; --i) {  // Fisher-Yates
      state = state * 1664525u + 1013904223u;
      unsigned j = unsigned((uint64_t(state) * i) >> 32);
      unsigned swapped = order[i - 1];
      order[i - 1] = order[j];
      order[j] = swapped;
    }
  }

  // Lanes of a warp, a bit each, that stay where they are at this turn: in the random order for a
  // while (some dozens of rounds) all in one case of four, some in another one.
  uint64_t held(unsigned warp, uint32_t turn) const {
    if (order_ != Order::random) return 0;
    const uint64_t drawn = mix(start(turn / 512) + warp);
    return drawn % 4 == 0 ? ~uint64_t(0) : drawn % 4 == 1 ? mix(drawn) : 0;
  }
  // Whether copies land and products are done although some lanes are held.
  bool early(uint32_t turn) const { return mix(start(turn)) % 2 == 0; }

  // Which of several pending copies lands first, and whether products are done before copies land.
  bool newest_first() const { return order_ == Order::reverse; }

  bool random() const { return order_ == Order::random; }

 private:
  static uint64_t mix(uint64_t x) {  // the finaliser of SplitMix64 (Steele et al. 2014)
    x += 0x9e3779b97f4a7c15u;
    x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9u;
    x = (x ^ x >> 27) * 0x94d049bb133111ebu;
    return x ^ x >> 31;
  }
  uint32_t start(uint32_t salt) const { return seed_ * 2654435761u + salt * 40503u + 12345u; }

  Order order_ = Order::forward;
  uint32_t seed_ = 0;
};

}  // namespace vitc::emu
