// How a generated launcher starts a kernel, on every backend.
//
//   return gpu::launch({"gemm 197x768x768", grid, threads, shared_bytes, stream}, kernel<...>,
//   args...);
//
// Built with -DVITC_DEPENDENT_LAUNCH (objects for sm_90 and later), a kernel may start while the
// one before it in the stream ends, so that launching it and fetching weights take no time of their
// own. Why that is correct:
// * Before wait_for_previous_kernel(), a kernel reads its arguments and weights, and writes
// nothing.
//   Weights are in place before the launch, and no kernel writes them.
// * Behind it, all that earlier kernels of the stream have written is there: those of the previous
//   one, which has ended; and since that one waited too before it could end, those of all before
//   it. So every kernel waits, in every thread that touches activations, whether or not it needs
//   what the previous kernel writes: it may overwrite what an earlier one reads.
// * let_next_kernel_start() takes effect when all blocks of a kernel have called it or have ended,
//   so blocks that wait only take room that no block they wait for will need.
// Programming model: PTX ISA, griddepcontrol. All kernels of a stream come from objects of one
// architecture, so either all of them do this or none does.
//
// Returns 0, or an error code that error_text() explains. Nothing waits for the device.
#pragma once

#include "vitc/gpu/device.h"

namespace vitc::gpu {

#if defined(VITC_EMULATE)
using Stream = void*;
#elif defined(__HIP__)
using Stream = hipStream_t;
#else
using Stream = cudaStream_t;
#endif

struct LaunchShape {
  const char* name;  // for messages
  Dim3 grid;
  int threads;
  size_t shared_bytes;  // dynamic
  Stream stream;
};

#if defined(VITC_EMULATE)

// `args` convert to the kernel's parameters as they do at a GPU launch.
template <class... Parameters, class... Args>
int launch(const LaunchShape& shape, void (*kernel)(Parameters...), const Args&... args) {
  return emu::launch(shape.name, shape.grid, Dim3(unsigned(shape.threads)), shape.shared_bytes,
                     [&] { kernel(args...); });
}
inline const char* error_text(int) { return emu::last_error(); }

#elif defined(__HIP__)

template <class... Parameters, class... Args>
int launch(const LaunchShape& shape, void (*kernel)(Parameters...), const Args&... args) {
  kernel<<<shape.grid, Dim3(unsigned(shape.threads)), shape.shared_bytes, shape.stream>>>(args...);
  return int(hipGetLastError());
}
inline const char* error_text(int code) { return hipGetErrorString(hipError_t(code)); }

#else

template <class... Parameters, class... Args>
int launch(const LaunchShape& shape, void (*kernel)(Parameters...), const Args&... args) {
  if (shape.shared_bytes > (48u << 10)) {  // beyond 48 KiB a kernel has to ask
    cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                             int(shape.shared_bytes));
    if (error != cudaSuccess) return int(error);
  }
#if defined(VITC_DEPENDENT_LAUNCH)
  cudaLaunchAttribute overlap{};
  overlap.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  overlap.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = shape.grid;
  config.blockDim = Dim3(unsigned(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = &overlap;
  config.numAttrs = 1;
  return int(cudaLaunchKernelEx(&config, kernel, Parameters(args)...));
#else
  kernel<<<shape.grid, Dim3(unsigned(shape.threads)), shape.shared_bytes, shape.stream>>>(args...);
  return int(cudaGetLastError());
#endif
}
inline const char* error_text(int code) { return cudaGetErrorString(cudaError_t(code)); }

#endif

}  // namespace vitc::gpu
