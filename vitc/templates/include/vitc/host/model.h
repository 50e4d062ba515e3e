// A model: which code runs, and the current set of weights.
#pragma once
#include <cstring>
#include <memory>
#include <mutex>
#include <vector>

#include "vitc/host/error.h"
#include "vitc/host/payload.h"
#include "vitc/host/table.h"

namespace vitc::host {

// Where kernels read each weight; every entry owns what it points into. Never changed once made: a
// run that holds a set is not disturbed by the next one.
using WeightSet = std::vector<Bytes>;

template <class Device>
class Model {
 public:
  Model(const Table& table, int32_t device, const char* weights_path)
      : table_(table), device_(device), code_(device_.choose_code(table.isas)) {
    const Bytes data = device_.place(map_weights(table, weights_path), table.payload_data_bytes);
    auto set = std::make_shared<WeightSet>();
    for (const Weight& weight : table.weights) {
      set->emplace_back(data, data.get() + weight.offset);
    }
    weights_ = std::move(set);
  }

  const Table& table() const { return table_; }
  const Device& device() const { return device_; }
  const Kernel& kernel(const Step& step) const { return step.kernels[code_]; }

  std::shared_ptr<const WeightSet> weights() const {
    const std::lock_guard<std::mutex> lock(mutex_);
    return weights_;
  }

  void set_weights(const vitc_weight* given, int32_t count) {
    // One writer at a time, so that no replacement is lost; runs wait only for the last line.
    const std::lock_guard<std::mutex> writer(writer_);
    std::vector<int32_t> slots;
    uint64_t total = 0;
    for (int32_t i = 0; i < count; ++i) {
      slots.push_back(find(given[i], i));
      total += aligned(given[i].bytes);
    }
    const std::shared_ptr<std::byte> block = device_.allocate(total, "the new weights");
    auto next = std::make_shared<WeightSet>(*weights());
    std::byte* to = block.get();
    for (int32_t i = 0; i < count; ++i) {
      device_.upload(to, given[i].data, given[i].bytes);
      (*next)[slots[i]] = Bytes(block, to);
      to += aligned(given[i].bytes);
    }
    const std::lock_guard<std::mutex> lock(mutex_);
    weights_ = std::move(next);
  }

 private:
  static uint64_t aligned(uint64_t bytes) { return (bytes + 127) / 128 * 128; }  // a line of L2

  int32_t find(const vitc_weight& given, int32_t position) const {
    if (given.name == nullptr || given.data == nullptr) {
      fail(VITC_INVALID_ARGUMENT, "name or data of weight %d is NULL", position);
    }
    for (int32_t slot = 0; slot < table_.weights.size; ++slot) {
      const Weight& weight = table_.weights[slot];
      if (std::strcmp(weight.name, given.name) != 0) continue;
      if (weight.bytes != given.bytes) {
        fail(VITC_BAD_WEIGHTS,
             "weight '%s' has %" PRIu64 " bytes, the library was compiled for %" PRIu64,
             weight.name, given.bytes, weight.bytes);
      }
      return slot;
    }
    fail(VITC_BAD_WEIGHTS, "the library has no weight '%s'", given.name);
  }

  const Table& table_;
  Device device_;
  int32_t code_;
  std::mutex writer_;
  mutable std::mutex mutex_;  // guards weights_
  std::shared_ptr<const WeightSet> weights_;
};

}  // namespace vitc::host
