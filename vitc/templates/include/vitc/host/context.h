// A context: the workspace of one caller, and the threads or the order on streams it runs with.
#pragma once
#include <algorithm>
#include <atomic>
#include <memory>
#include <set>
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
        lane_(model_->device(), threads),
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

  // The kernels may still be running, and the memory must outlive them.
  ~Context() { lane_.finish(); }
  Context(const Context&) = delete;
  Context& operator=(const Context&) = delete;

  int32_t step_count() const { return table().steps.size; }

  void run(const Invocation& call, int32_t first, int32_t last) {
    const Claim claim(busy_);
    if (first < 0 || last < first || last > step_count()) {
      fail(VITC_INVALID_ARGUMENT, "steps %d to %d: the library has 0 to %d", first, last,
           step_count());
    }
    const int64_t batch = check(call);
    take_weights();
    const Work work{*this, call, batch, first, last};
    // A caller who records the run keeps the addresses of the weights beyond any call.
    if (lane_.run(work)) recorded_weights_.insert(weights_);
    if (!Device::kAsynchronous) weights_.reset();
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
    const int64_t batch = check(call);
    take_weights();
    std::vector<std::vector<float>> times(step_count());
    std::vector<typename Device::Lane::Mark> marks(step_count() + 1);
    const auto launch = [&] {
      lane_.mark(marks[0], call.stream);
      for (int32_t i = 0; i < step_count(); ++i) {
        run_step(i, call, batch, call.stream);
        lane_.mark(marks[i + 1], call.stream);
      }
    };
    for (int32_t repeat = 0; repeat < repeats; ++repeat) {
      lane_.time(call.stream, launch);
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

  // What a lane asks of a run: all of it is about the steps [first, last) of one call.
  class Work {
   public:
    Work(Context& context, const Invocation& call, int64_t batch, int32_t first, int32_t last)
        : context_(context), call_(call), batch_(batch), first_(first), last_(last) {}

    void* stream() const { return call_.stream; }
    int64_t batch() const { return batch_; }
    bool whole() const { return first_ == 0 && last_ == context_.step_count(); }

    // Calls visit(kind, name, address) for each tensor of the call.
    template <class Visit>
    void each_tensor(const Visit& visit) const {
      const Table& table = context_.table();
      for (int32_t i = 0; i < call_.inputs.size; ++i) {
        visit("input", table.inputs[i].name, call_.inputs.data[i].data);
      }
      for (int32_t i = 0; i < call_.outputs.size; ++i) {
        visit("output", table.outputs[i].name, call_.outputs.data[i].data);
      }
    }

    void launch(void* stream) const {
      for (int32_t i = first_; i < last_; ++i) context_.run_step(i, call_, batch_, stream);
    }

   private:
    Context& context_;
    const Invocation& call_;
    int64_t batch_;
    int32_t first_, last_;
  };

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

  int64_t check(const Invocation& call) const {
    return CallChecker(table(), Device::kAlignment).check(call.inputs, call.outputs);
  }

  // The current weights, for this run. Those of the run before may be freed once it has ended.
  void take_weights() {
    std::shared_ptr<const WeightSet> current = model_->weights();
    if (current == weights_) return;
    lane_.forget();
    weights_ = std::move(current);
  }

  void* resolve(const Arg& arg, const Invocation& call) const {
    switch (arg.space) {
      case Space::kInput:
        return call.inputs.data[arg.at].data;
      case Space::kOutput:
        return call.outputs.data[arg.at].data;
      case Space::kWeight:
        return const_cast<std::byte*>((*weights_)[arg.at].get());
      case Space::kWorkspace:
        return workspace_.get() + arg.at;
    }
    return nullptr;
  }

  void run_step(int32_t index, const Invocation& call, int64_t batch, void* stream) {
    const Step& step = table().steps[index];
    for (int32_t i = 0; i < step.arg_count; ++i) args_[i] = resolve(step.args[i], call);
    const Call kernel_call{args_.data(), batch, scratch_.get(), lane_.executor(stream)};
    if (const int code = model_->kernel(step).run(kernel_call); code != 0) {
      model_->device().fail_step(index, step.name, code);
    }
  }

  std::shared_ptr<Model<Device>> model_;
  typename Device::Lane lane_;
  std::shared_ptr<const WeightSet> weights_;  // of the latest run
  std::set<std::shared_ptr<const WeightSet>> recorded_weights_;
  std::shared_ptr<std::byte> workspace_;
  std::shared_ptr<std::byte> scratch_;
  std::vector<void*> args_;
  std::atomic_flag busy_ = ATOMIC_FLAG_INIT;
};

}  // namespace vitc::host
