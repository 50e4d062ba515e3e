// Launches with Hopper's attributes: clusters of blocks, and an early start while the kernel before
// ends.
#pragma once

#include "vitc/gpu/launch.h"

namespace vitc::gpu::sm90 {

// 0 starts kernels of this folder only when the one before them has ended, to measure what that
// costs.
#ifndef VITC_OVERLAP
#define VITC_OVERLAP 1
#endif

// As gpu::launch, in clusters of `cluster` blocks. With `overlap` the kernel must call
// wait_for_previous_kernel() before it touches activations; what runs before and after it is free
// not to.
#if defined(VITC_EMULATE)
template <class... Parameters, class... Args>
int launch_clusters(const LaunchShape& shape, int cluster, bool /*overlap*/,
                    void (*kernel)(Parameters...), const Args&... args) {
  return emu::launch(
      shape.name, shape.grid, Dim3(unsigned(shape.threads)), shape.shared_bytes,
      [&] { kernel(args...); }, unsigned(cluster));
}
#else
template <class... Parameters, class... Args>
int launch_clusters(const LaunchShape& shape, int cluster, bool overlap,
                    void (*kernel)(Parameters...), const Args&... args) {
  cudaError_t error = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize,
                                           int(shape.shared_bytes));
  if (error != cudaSuccess) return int(error);
  cudaLaunchAttribute attributes[2] = {};
  unsigned count = 0;
  if (cluster > 1) {
    attributes[count].id = cudaLaunchAttributeClusterDimension;
    attributes[count++].val.clusterDim = {unsigned(cluster), 1, 1};
  }
  if (overlap) {
    attributes[count].id = cudaLaunchAttributeProgrammaticStreamSerialization;
    attributes[count++].val.programmaticStreamSerializationAllowed = 1;
  }
  cudaLaunchConfig_t config = {};
  config.gridDim = shape.grid;
  config.blockDim = Dim3(unsigned(shape.threads));
  config.dynamicSmemBytes = shape.shared_bytes;
  config.stream = shape.stream;
  config.attrs = attributes;
  config.numAttrs = count;
  return int(cudaLaunchKernelEx(&config, kernel, Parameters(args)...));
}
#endif

}  // namespace vitc::gpu::sm90
