// CUDA's error codes as failures that say what to do.
#pragma once
#include <cuda_runtime_api.h>

#include <cstdio>

#include "vitc/host/error.h"

namespace vitc::host {

inline vitc_status cuda_status(cudaError_t error) {
  switch (error) {
    case cudaErrorMemoryAllocation:
      return VITC_OUT_OF_MEMORY;
    case cudaErrorInsufficientDriver:
    case cudaErrorNoDevice:
    case cudaErrorStubLibrary:
    case cudaErrorSystemDriverMismatch:
    case cudaErrorCompatNotSupportedOnDevice:
    case cudaErrorNoKernelImageForDevice:
    case cudaErrorInvalidPtx:
    case cudaErrorUnsupportedPtxVersion:
    case cudaErrorJitCompilerNotFound:
      return VITC_UNSUPPORTED_DEVICE;
    default:
      return VITC_DEVICE_ERROR;
  }
}

// CUDA writes version 13.2 as 13020.
struct CudaVersion {
  int number = 0;
  int major() const { return number / 1000; }
  int minor() const { return number % 1000 / 10; }

  static CudaVersion of_driver() {  // 0: there is none
    CudaVersion version;
    if (cudaDriverGetVersion(&version.number) != cudaSuccess) version.number = 0;
    return version;
  }
  static CudaVersion of_library() { return {CUDART_VERSION}; }
};

// What to do about an error, or nothing.
inline void cuda_advice(cudaError_t error, char* text, size_t size) {
  const CudaVersion driver = CudaVersion::of_driver(), library = CudaVersion::of_library();
  text[0] = '\0';
  switch (error) {
    case cudaErrorInsufficientDriver:
      if (driver.number == 0) {
        std::snprintf(text, size, ": this machine has no NVIDIA driver (libcuda.so.1)");
      } else {
        std::snprintf(text, size,
                      ": the NVIDIA driver supports CUDA %d.%d, the library was built with CUDA "
                      "%d.%d; update the driver, or compile with an older CUDA toolkit",
                      driver.major(), driver.minor(), library.major(), library.minor());
      }
      break;
    case cudaErrorUnsupportedPtxVersion:
      std::snprintf(text, size,
                    ": the NVIDIA driver supports CUDA %d.%d and cannot compile the PTX of CUDA "
                    "%d.%d; update the driver, or compile the model for this GPU's architecture",
                    driver.major(), driver.minor(), library.major(), library.minor());
      break;
    case cudaErrorNoDevice:
      std::snprintf(text, size,
                    ": the driver is there, a GPU is not (or is hidden, see "
                    "CUDA_VISIBLE_DEVICES)");
      break;
    case cudaErrorInitializationError:
      std::snprintf(text, size,
                    ": CUDA does not work in a process that was forked after its parent "
                    "had used it; start processes with 'spawn'");
      break;
    case cudaErrorIllegalAddress:
    case cudaErrorMisalignedAddress:
    case cudaErrorLaunchFailure:
    case cudaErrorHardwareStackError:
    case cudaErrorIllegalInstruction:
    case cudaErrorInvalidAddressSpace:
    case cudaErrorInvalidPc:
    case cudaErrorAssert:
    case cudaErrorLaunchTimeout:
    case cudaErrorECCUncorrectable:
      std::snprintf(text, size,
                    ": some kernel of this process failed, perhaps an earlier one; "
                    "CUDA_LAUNCH_BLOCKING=1 shows which. The process must start anew");
      break;
    default:
      break;
  }
}

[[noreturn]] inline void cuda_fail(cudaError_t error, const char* what) {
  cudaGetLastError();  // the runtime remembers it, and the next launch would report it once more
  char advice[320];
  cuda_advice(error, advice, sizeof advice);
  fail(cuda_status(error), "%s: %s (%s)%s", what, cudaGetErrorString(error),
       cudaGetErrorName(error), advice);
}

inline void cuda_check(cudaError_t error, const char* what) {
  if (error != cudaSuccess) cuda_fail(error, what);
}

}  // namespace vitc::host
