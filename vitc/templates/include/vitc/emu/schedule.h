// In which order blocks, warps and lanes run. A kernel without data races gives the same result in
// every order. Between two barriers warps run one after another, so of two conflicting accesses one
// comes first in the forward order and last in the reverse order: running both orders shows every
// race of values.
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
    uint32_t state = seed_ * 2654435761u + salt * 40503u + 12345u;
    for (unsigned i = n; i > 1; --i) {  // Fisher-Yates
      state = state * 1664525u + 1013904223u;
      unsigned j = unsigned((uint64_t(state) * i) >> 32);
      unsigned swapped = order[i - 1];
      order[i - 1] = order[j];
      order[j] = swapped;
    }
  }

  // Which of several pending copies lands first, and whether products are done before copies land.
  bool newest_first() const { return order_ == Order::reverse; }

  bool random() const { return order_ == Order::random; }

 private:
  Order order_ = Order::forward;
  uint32_t seed_ = 0;
};

}  // namespace vitc::emu
