// The calling thread's device, taken for a while and given back; handles that do the same to die.
#pragma once
#include <cuda.h>
#include <cuda_runtime_api.h>

#include <utility>

#include "vitc/host/cuda/error.h"

namespace vitc::host {

// The few functions of the driver that the runtime has no like of: selecting a device by
// cudaSetDevice, and another one back, would create a context on a GPU that nobody uses.
struct CudaDriver {
  CUresult (*get)(CUcontext*) = nullptr;
  CUresult (*push)(CUcontext) = nullptr;
  CUresult (*pop)(CUcontext*) = nullptr;
  CUresult (*retain)(CUcontext*, CUdevice) = nullptr;
  CUresult (*exchange)(CUstreamCaptureMode*) = nullptr;

  static const CudaDriver& instance() {
    static const CudaDriver driver;
    return driver;
  }

 private:
  CudaDriver() {
    find("cuCtxGetCurrent", get);
    find("cuCtxPushCurrent", push);
    find("cuCtxPopCurrent", pop);
    find("cuDevicePrimaryCtxRetain", retain);
    find("cuThreadExchangeStreamCaptureMode", exchange);
  }

  template <class Function>
  static void find(const char* name, Function& function) {
    void* address = nullptr;
    cudaDriverEntryPointQueryResult result;
#if CUDART_VERSION >= 12050
    const cudaError_t error =
        cudaGetDriverEntryPointByVersion(name, &address, 12000, cudaEnableDefault, &result);
#else
    const cudaError_t error = cudaGetDriverEntryPoint(name, &address, cudaEnableDefault, &result);
#endif
    cuda_check(error, "cannot use an NVIDIA GPU");
    if (address == nullptr) fail(VITC_DEVICE_ERROR, "the NVIDIA driver lacks %s", name);
    function = reinterpret_cast<Function>(address);
  }
};

// The primary context of a device, shared with torch and all others that use the runtime. It lives
// as long as the process.
inline CUcontext primary_context(int32_t device) {
  CUcontext context = nullptr;
  const CUresult result = CudaDriver::instance().retain(&context, device);
  if (result == CUDA_SUCCESS) return context;
  char what[64];
  std::snprintf(what, sizeof what, "cannot use GPU %d", device);
  // The codes of driver and runtime are the same numbers.
  cuda_fail(static_cast<cudaError_t>(result), what);
}

// While it lives, the calling thread may allocate, free and wait although some stream is being
// captured: nothing here concerns a capture unless it says so. The runtime's own function for it
// would first load the library's code, which a capture elsewhere does not survive.
class CaptureRelaxed {
 public:
  CaptureRelaxed() { CudaDriver::instance().exchange(&mode_); }
  ~CaptureRelaxed() { CudaDriver::instance().exchange(&mode_); }
  CaptureRelaxed(const CaptureRelaxed&) = delete;
  CaptureRelaxed& operator=(const CaptureRelaxed&) = delete;

 private:
  CUstreamCaptureMode mode_ = CU_STREAM_CAPTURE_MODE_RELAXED;
};

// While it lives, the device is the calling thread's, with captures relaxed.
class CudaHere {
 public:
  explicit CudaHere(CUcontext context) noexcept {
    CUcontext current = nullptr;
    const CudaDriver& driver = CudaDriver::instance();
    if (driver.get(&current) != CUDA_SUCCESS || current != context) {
      pushed_ = driver.push(context) == CUDA_SUCCESS;
    }
  }
  ~CudaHere() {
    CUcontext popped;
    if (pushed_) CudaDriver::instance().pop(&popped);
  }
  CudaHere(const CudaHere&) = delete;
  CudaHere& operator=(const CudaHere&) = delete;

 private:
  const CaptureRelaxed relaxed_;
  bool pushed_ = false;
};

// A stream, event or graph with its owner.
template <class Handle, auto kDestroy>
class CudaHandle {
 public:
  CudaHandle() = default;
  CudaHandle(CUcontext context, Handle handle) : context_(context), handle_(handle) {}
  CudaHandle(CudaHandle&& other) noexcept { *this = std::move(other); }
  CudaHandle& operator=(CudaHandle&& other) noexcept {
    std::swap(context_, other.context_);
    std::swap(handle_, other.handle_);
    return *this;
  }
  ~CudaHandle() {
    if (handle_ == nullptr) return;
    const CudaHere here(context_);
    kDestroy(handle_);
  }

  Handle get() const { return handle_; }

 private:
  CUcontext context_ = nullptr;
  Handle handle_ = nullptr;
};

using CudaStream = CudaHandle<cudaStream_t, cudaStreamDestroy>;
using CudaEvent = CudaHandle<cudaEvent_t, cudaEventDestroy>;
using CudaGraph = CudaHandle<cudaGraph_t, cudaGraphDestroy>;
using CudaExecutable = CudaHandle<cudaGraphExec_t, cudaGraphExecDestroy>;

// A stream that neither waits for the default stream nor makes it wait.
inline CudaStream make_stream(CUcontext context) {
  const CudaHere here(context);
  cudaStream_t stream = nullptr;
  cuda_check(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking), "cannot create a stream");
  return {context, stream};
}

inline CudaEvent make_event(CUcontext context, unsigned flags) {
  const CudaHere here(context);
  cudaEvent_t event = nullptr;
  cuda_check(cudaEventCreateWithFlags(&event, flags), "cannot create an event");
  return {context, event};
}

// Whether the caller records what goes to the stream into a graph of its own.
inline bool is_recording(cudaStream_t stream) {
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  cuda_check(cudaStreamIsCapturing(stream, &status), "cannot use the stream");
  return status != cudaStreamCaptureStatusNone;
}

}  // namespace vitc::host
