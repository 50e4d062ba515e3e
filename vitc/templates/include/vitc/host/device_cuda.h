// An NVIDIA GPU as a device, over CUDA's runtime API. Compiled by nvcc, or by a C++ compiler with
// CUDA's headers. device_cpu.h says what each part is for.
#pragma once
#include <chrono>
#include <condition_variable>
#include <memory>
#include <mutex>
#include <string>

#include "vitc/host/cuda/arch.h"
#include "vitc/host/cuda/error.h"
#include "vitc/host/cuda/graphs.h"
#include "vitc/host/cuda/scope.h"
#include "vitc/host/error.h"
#include "vitc/host/payload.h"
#include "vitc/host/table.h"

namespace vitc::host {

class CudaDevice {
 public:
  static constexpr uint64_t kAlignment = 16;  // of the widest load
  static constexpr bool kAsynchronous = true;

  explicit CudaDevice(int32_t index) : index_(index) {
    int count = 0;
    cuda_check(cudaGetDeviceCount(&count), "cannot use an NVIDIA GPU");
    if (index < 0 || index >= count) {
      fail(VITC_UNSUPPORTED_DEVICE, "device %d: this process sees %d NVIDIA GPU%s, numbered from 0",
           index, count, count == 1 ? "" : "s");
    }
    const CaptureRelaxed relaxed;
    context_ = primary_context(index);
    copies_ = make_stream(context_);
  }

  CUcontext context() const { return context_; }

  int32_t choose_code(List<const char*> isas) const {
    CudaArch gpu;
    gpu.major = attribute(cudaDevAttrComputeCapabilityMajor);
    gpu.minor = attribute(cudaDevAttrComputeCapabilityMinor);
    return choose_cuda_code(isas, gpu, name().c_str());
  }

  std::shared_ptr<std::byte> allocate(uint64_t bytes, const char* purpose) const {
    if (bytes == 0) return nullptr;
    const CudaHere here(context_);
    void* memory = nullptr;
    const cudaError_t error = cudaMalloc(&memory, bytes);
    if (error == cudaErrorMemoryAllocation) fail_allocation(bytes, purpose);
    cuda_check(error, "cannot allocate memory");
    return {static_cast<std::byte*>(memory), [context = context_](std::byte* block) {
              const CudaHere there(context);
              cudaFree(block);
            }};
  }

  // Copies the weights to the GPU, where all contexts of the model share them.
  Bytes place(const Bytes& mapped, uint64_t bytes) const {
    const std::shared_ptr<std::byte> block = allocate(bytes, "the weights");
    upload(block.get(), mapped.get(), bytes);
    return block;
  }

  void upload(std::byte* to, const void* from, uint64_t bytes) const {
    copy(to, from, bytes, cudaMemcpyHostToDevice, "cannot copy to the GPU");
  }
  void download(void* to, const std::byte* from, uint64_t bytes) const {
    copy(to, from, bytes, cudaMemcpyDeviceToHost, "cannot copy from the GPU");
  }

  [[noreturn]] static void fail_step(int32_t index, const char* name, int code) {
    char what[256];
    std::snprintf(what, sizeof what, "step %d (%s)", index, name);
    cuda_fail(static_cast<cudaError_t>(code), what);
  }

  // Fails where the kernels cannot reach a tensor: they would fault, and take the process's CUDA
  // with them.
  void check_reach(const char* kind, const char* name, const void* data) const {
    cudaPointerAttributes found{};
    cuda_check(cudaPointerGetAttributes(&found, data), "cannot ask where a tensor is");
    if (found.type == cudaMemoryTypeDevice && found.device != index_) {
      fail(VITC_INVALID_ARGUMENT, "%s '%s' is on GPU %d, the model is on GPU %d", kind, name,
           found.device, index_);
    }
    if (found.type == cudaMemoryTypeUnregistered &&
        attribute(cudaDevAttrPageableMemoryAccess) == 0) {
      fail(VITC_INVALID_ARGUMENT, "%s '%s' is in host memory, the model is on GPU %d", kind, name,
           index_);
    }
  }

  // The order of one context's runs, on whichever streams the caller names.
  class Lane {
   public:
    using Mark = CudaEvent;

    Lane(const CudaDevice& device, int32_t /*threads*/)
        : device_(device),
          graphs_(device.context()),
          done_(make_event(device.context(), cudaEventDisableTiming)) {}

    static int threads() { return 1; }
    static Executor* executor(void* stream) { return static_cast<Executor*>(stream); }

    template <class Work>
    bool run(const Work& work) {
      const CudaHere here(device_.context());
      const auto stream = static_cast<cudaStream_t>(work.stream());
      if (is_recording(stream)) {  // the caller orders the replays
        work.launch(stream);
        return true;
      }
      const Turn turn(*this, stream);
      const auto check = [&] {
        work.each_tensor([&](const char* kind, const char* name, const void* data) {
          device_.check_reach(kind, name, data);
        });
      };
      if (work.whole()) {
        graphs_.run(work, check);
      } else {
        check();
        work.launch(stream);
      }
      return false;
    }

    void wait() {
      const CudaHere here(device_.context());
      if (ran_) cuda_check(cudaEventSynchronize(done_.get()), "a run failed");
    }

    void finish() noexcept {
      const CudaHere here(device_.context());
      if (ran_) cudaEventSynchronize(done_.get());
    }

    void forget() {
      wait();
      graphs_.forget();
    }

    // The GPU starts when all is queued, so that it never waits for the CPU between two marks.
    template <class Launch>
    void time(void* stream_argument, const Launch& launch) {
      const CudaHere here(device_.context());
      const auto stream = static_cast<cudaStream_t>(stream_argument);
      if (is_recording(stream)) {
        fail(VITC_INVALID_ARGUMENT, "the stream is being captured; profile on another one");
      }
      const Turn turn(*this, stream);
      Gate gate(stream);
      launch();
      gate.open();
      cuda_check(cudaStreamSynchronize(stream), "a run failed");
    }

    void mark(Mark& mark, void* stream) {
      if (mark.get() == nullptr) mark = make_event(device_.context(), cudaEventDefault);
      cuda_check(cudaEventRecord(mark.get(), static_cast<cudaStream_t>(stream)),
                 "cannot record an event");
    }

    float microseconds(const Mark& from, const Mark& to) const {
      const CudaHere here(device_.context());
      float milliseconds = 0;
      cuda_check(cudaEventElapsedTime(&milliseconds, from.get(), to.get()), "cannot read an event");
      return milliseconds * 1000;
    }

   private:
    // One use of a stream: after the run before, which may have been on another stream and uses the
    // same workspace; its end is recorded even where it fails halfway.
    class Turn {
     public:
      Turn(Lane& lane, cudaStream_t stream) : lane_(lane), stream_(stream) {
        unsigned long long id = 0;  // handles are used again, ids are not
        cuda_check(cudaStreamGetId(stream, &id), "cannot use the stream");
        if (lane.ran_ && id != lane.stream_id_) {
          cuda_check(cudaStreamWaitEvent(stream, lane.done_.get(), 0), "cannot use the stream");
        }
        lane.stream_id_ = id;
      }
      ~Turn() { lane_.ran_ |= cudaEventRecord(lane_.done_.get(), stream_) == cudaSuccess; }
      Turn(const Turn&) = delete;
      Turn& operator=(const Turn&) = delete;

     private:
      Lane& lane_;
      cudaStream_t stream_;
    };

    // Holds back what is queued after it. Not for ever: when the queue is full, whoever fills it
    // waits too.
    class Gate {
     public:
      explicit Gate(cudaStream_t stream) : stream_(stream) {
        cuda_check(cudaLaunchHostFunc(stream, pass, this), "cannot use the stream");
      }
      ~Gate() {
        open();
        cudaStreamSynchronize(stream_);  // pass() must not outlive us
      }
      Gate(const Gate&) = delete;
      Gate& operator=(const Gate&) = delete;

      void open() {
        const std::lock_guard<std::mutex> lock(mutex_);
        open_ = true;
        changed_.notify_one();
      }

     private:
      static void CUDART_CB pass(void* gate) {
        auto* self = static_cast<Gate*>(gate);
        std::unique_lock<std::mutex> lock(self->mutex_);
        self->changed_.wait_for(lock, std::chrono::milliseconds(50),
                                [self] { return self->open_; });
      }

      cudaStream_t stream_;
      std::mutex mutex_;
      std::condition_variable changed_;
      bool open_ = false;
    };

    const CudaDevice& device_;
    CudaGraphs graphs_;
    CudaEvent done_;  // the end of the latest run
    bool ran_ = false;
    unsigned long long stream_id_ = 0;
  };

 private:
  int attribute(cudaDeviceAttr which) const {
    int value = 0;
    cuda_check(cudaDeviceGetAttribute(&value, which, index_),
               "cannot ask for a property of the GPU");
    return value;
  }

  std::string name() const {
    cudaDeviceProp properties{};
    cuda_check(cudaGetDeviceProperties(&properties, index_), "cannot ask for the GPU's name");
    return "GPU " + std::to_string(index_) + " (" + properties.name + ")";
  }

  [[noreturn]] void fail_allocation(uint64_t bytes, const char* purpose) const {
    cudaGetLastError();
    constexpr double kGiB = 1 << 30;
    size_t free = 0, total = 0;
    cudaMemGetInfo(&free, &total);
    fail(VITC_OUT_OF_MEMORY,
         "cannot allocate %" PRIu64 " bytes (%.2f GiB) for %s on %s: %.2f of %.2f GiB are free",
         bytes, static_cast<double>(bytes) / kGiB, purpose, name().c_str(),
         static_cast<double>(free) / kGiB, static_cast<double>(total) / kGiB);
  }

  void copy(void* to, const void* from, uint64_t bytes, cudaMemcpyKind kind,
            const char* what) const {
    if (bytes == 0) return;
    const CudaHere here(context_);
    cuda_check(cudaMemcpyAsync(to, from, bytes, kind, copies_.get()), what);
    cuda_check(cudaStreamSynchronize(copies_.get()), what);
  }

  int32_t index_;
  CUcontext context_;
  CudaStream copies_;
};

}  // namespace vitc::host
