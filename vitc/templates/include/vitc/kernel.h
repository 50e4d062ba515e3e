// The signature shared by every generated kernel, on every target.
#pragma once
#include <stdint.h>

namespace vitc {

class Executor;  // cpu: the thread pool (cpu/executor.h); gpu: the stream

// args: the op's inputs, then its outputs, in IR order. batch: images in this run.
// scratch: at least `<name>_scratch(threads)` bytes, 64-byte aligned, contents undefined.
struct Call {
  void* const* args;
  int64_t batch;
  void* scratch;
  Executor* exec;
};

using KernelFn = int (*)(const Call&);        // 0 = ok
using ScratchFn = uint64_t (*)(int threads);  // bytes of scratch that the kernel needs

// Argument i as a pointer to T. Forced inline: the same header is compiled for several ISAs, and
// the linker must never pick one ISA's out-of-line copy for another.
template <class T>
[[gnu::always_inline]] inline T* arg(const Call& call, int i) {
  return static_cast<T*>(call.args[i]);
}

}  // namespace vitc
