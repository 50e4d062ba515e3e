// A context: the workspace and the threads or stream of one caller.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <utility>
#include <vector>

#include "vitc/host/check.h"
#include "vitc/host/model.h"

namespace vitc::host {

struct Invocation {
  Tensors inputs;
  Tensors outputs;
  void* stream;
};

template <class Device>
class Context {
 public:
  Context(std::shared_ptr<Model<Device>> model, int32_t threads)
      : model_(std::move(model)),
        lane_(threads),
        workspace_(model_->device().allocate(table().workspace_bytes, "the workspace")) {
    uint64_t scratch = 0;
    size_t most_args = 0;
    for (const Step& step : table().steps) {
      scratch = std::max(scratch, model_->kernel(step).scratch(lane_.threads()));
      most_args = std::max(most_args, static_cast<size_t>(step.arg_count));
    }
    scratch_ = model_->device().allocate(scratch, "kernel scratch");
    args_.resize(most_args);
  }

  int32_t step_count() const { return table().steps.size; }

  void run(const Invocation& call, int32_t first, int32_t last) {
    const Claim claim(busy_);
    if (first < 0 || last < first || last > step_count()) {
      fail(VITC_INVALID_ARGUMENT, "steps %d to %d: the library has 0 to %d", first, last,
           step_count());
    }
    const int64_t batch = CallChecker(table()).check(call.inputs, call.outputs);
    const std::shared_ptr<const WeightSet> weights = model_->weights();
    for (int32_t i = first; i < last; ++i) run_step(i, call, batch, *weights);
  }

  void read(uint64_t offset, void* host, uint64_t bytes) {
    const Claim claim(busy_);
    const uint64_t size = table().workspace_bytes;
    if (offset > size || bytes > size - offset) {
      fail(VITC_INVALID_ARGUMENT,
           "bytes %" PRIu64 " + %" PRIu64 " are not in the workspace, which has %" PRIu64, offset,
           bytes, size);
    }
    lane_.wait();
    model_->device().download(host, workspace_.get() + offset, bytes);
  }

  void profile(const Invocation& call, int32_t repeats, float* microseconds) {
    const Claim claim(busy_);
    const int64_t batch = CallChecker(table()).check(call.inputs, call.outputs);
    const std::shared_ptr<const WeightSet> weights = model_->weights();
    std::vector<std::vector<float>> times(step_count());
    std::vector<typename Device::Lane::Mark> marks(step_count() + 1);
    for (int32_t repeat = 0; repeat < repeats; ++repeat) {
      marks[0] = lane_.mark();
      for (int32_t i = 0; i < step_count(); ++i) {
        run_step(i, call, batch, *weights);
        marks[i + 1] = lane_.mark();
      }
      lane_.wait();
      for (int32_t i = 0; i < step_count(); ++i) {
        times[i].push_back(lane_.microseconds(marks[i], marks[i + 1]));
      }
    }
    for (int32_t i = 0; i < step_count(); ++i) {
      const auto middle = times[i].begin() + times[i].size() / 2;
      std::nth_element(times[i].begin(), middle, times[i].end());
      microseconds[i] = *middle;
    }
  }

 private:
  // Refuses a second thread instead of letting it spoil the workspace.
  class Claim {
   public:
    explicit Claim(std::atomic_flag& busy) : busy_(busy) {
      if (busy_.test_and_set(std::memory_order_acquire)) {
        fail(VITC_INVALID_ARGUMENT,
             "the context is in use by another thread; create one context per thread");
      }
    }
    ~Claim() { busy_.clear(std::memory_order_release); }
    Claim(const Claim&) = delete;
    Claim& operator=(const Claim&) = delete;

   private:
    std::atomic_flag& busy_;
  };

  const Table& table() const { return model_->table(); }

  void* resolve(const Arg& arg, const Invocation& call, const WeightSet& weights) const {
    switch (arg.space) {
      case Space::kInput:
        return call.inputs.data[arg.at].data;
      case Space::kOutput:
        return call.outputs.data[arg.at].data;
      case Space::kWeight:
        return const_cast<std::byte*>(weights[arg.at].get());
      case Space::kWorkspace:
        return workspace_.get() + arg.at;
    }
    return nullptr;
  }

  void run_step(int32_t index, const Invocation& call, int64_t batch, const WeightSet& weights) {
    const Step& step = table().steps[index];
    for (int32_t i = 0; i < step.arg_count; ++i) args_[i] = resolve(step.args[i], call, weights);
    const Call kernel_call{args_.data(), batch, scratch_.get(), lane_.executor(call.stream)};
    if (const int code = model_->kernel(step).run(kernel_call); code != 0) {
      fail(VITC_INTERNAL, "step %d (%s) failed with code %d", index, step.name, code);
    }
  }

  std::shared_ptr<Model<Device>> model_;
  typename Device::Lane lane_;
  std::shared_ptr<std::byte> workspace_;
  std::shared_ptr<std::byte> scratch_;
  std::vector<void*> args_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace vitc::host
