// The runs of one context as CUDA graphs: launching one costs the CPU less than its kernels would.
//
// A graph holds the addresses it was captured with. Callers pass the same few again and again, so
// the latest graphs are kept; for other addresses the kernels are captured anew, which touches
// neither memory nor GPU, and an existing executable graph of that batch is given the new ones.
#pragma once
#include <algorithm>
#include <cstdlib>
#include <cstring>
#include <set>
#include <vector>

#include "vitc/host/cuda/scope.h"

namespace vitc::host {

class CudaGraphs {
 public:
  // The environment variable VITC_GRAPHS=0 does without graphs: easier to read in a profiler.
  explicit CudaGraphs(CUcontext context) : context_(context), stream_(make_stream(context)) {
    const char* wish = std::getenv("VITC_GRAPHS");
    enabled_ = wish == nullptr || std::strcmp(wish, "0") != 0;
  }

  // Starts all of `work` on its stream. `check` is called where the addresses are new.
  template <class Work, class Check>
  void run(const Work& work, const Check& check) {
    const auto stream = static_cast<cudaStream_t>(work.stream());
    addresses_.clear();
    work.each_tensor([&](const char*, const char*, void* data) { addresses_.push_back(data); });
    Entry* entry = enabled_ ? find(work.batch()) : nullptr;
    if (entry == nullptr) {
      check();
      // The first run of a batch loads its kernels, which a capture may not do, and many programs
      // have but one.
      if (!enabled_ || batches_.count(work.batch()) == 0) {
        work.launch(stream);
        batches_.insert(work.batch());  // unless it failed
        return;
      }
      entry = &make(work);
    }
    entry->used = ++clock_;
    cuda_check(cudaGraphLaunch(entry->executable.get(), stream), "cannot launch the graph");
  }

  // Other addresses than those of the call have changed too: no graph may be launched as it is.
  void forget() {
    for (Entry& entry : entries_) {
      entry.addresses.clear();
      entry.used = 0;
    }
  }

 private:
  static constexpr int kPerBatch = 4;
  static constexpr size_t kAll = 32;

  struct Entry {
    int64_t batch = 0;
    std::vector<const void*> addresses;
    uint64_t used = 0;
    CudaExecutable executable;
  };

  Entry* find(int64_t batch) {
    for (Entry& entry : entries_) {
      if (entry.batch == batch && entry.addresses == addresses_) return &entry;
    }
    return nullptr;
  }

  template <class Work>
  Entry& make(const Work& work) {
    const CudaGraph graph = capture(work);
    Entry& entry = place_for(work.batch());
    // Until it is made, the entry must not be found.
    entry.batch = work.batch();
    entry.addresses.clear();
    if (!update(entry.executable, graph)) {
      cudaGraphExec_t made = nullptr;
      cuda_check(cudaGraphInstantiate(&made, graph.get(), 0), "cannot instantiate the graph");
      entry.executable = CudaExecutable(context_, made);
    }
    entry.addresses = addresses_;
    return entry;
  }

  template <class Work>
  CudaGraph capture(const Work& work) {
    cudaGraph_t graph = nullptr;
    cuda_check(cudaStreamBeginCapture(stream_.get(), cudaStreamCaptureModeRelaxed),
               "cannot capture a graph");
    try {
      work.launch(stream_.get());
    } catch (...) {
      cudaStreamEndCapture(stream_.get(), &graph);
      const CudaGraph broken(context_, graph);
      cudaGetLastError();
      throw;
    }
    cuda_check(cudaStreamEndCapture(stream_.get(), &graph), "cannot capture a graph");
    return {context_, graph};
  }

  // Whether the executable does what the graph says from its next launch on.
  static bool update(const CudaExecutable& executable, const CudaGraph& graph) {
    if (executable.get() == nullptr) return false;
    cudaGraphExecUpdateResultInfo result;
    if (cudaGraphExecUpdate(executable.get(), graph.get(), &result) == cudaSuccess) return true;
    cudaGetLastError();  // the kernels of the two differ
    return false;
  }

  // A new entry, or the least recently used one: of this batch, so that it can be updated, or of
  // all.
  Entry& place_for(int64_t batch) {
    const auto same = [batch](const Entry& entry) { return entry.batch == batch; };
    const auto less = [](const Entry& a, const Entry& b) { return a.used < b.used; };
    const auto middle = std::stable_partition(entries_.begin(), entries_.end(), same);
    const auto oldest = std::min_element(entries_.begin(), middle, less);
    if (oldest != middle && (oldest->used == 0 || middle - entries_.begin() >= kPerBatch)) {
      return *oldest;
    }
    if (entries_.size() >= kAll) {
      Entry& victim = *std::min_element(entries_.begin(), entries_.end(), less);
      if (!same(victim)) victim = Entry();
      return victim;
    }
    return entries_.emplace_back();
  }

  CUcontext context_;
  CudaStream stream_;  // kernels are captured here, none runs
  bool enabled_;
  uint64_t clock_ = 0;
  std::set<int64_t> batches_;
  std::vector<Entry> entries_;
  std::vector<const void*> addresses_;  // of the present call
};

}  // namespace vitc::host
