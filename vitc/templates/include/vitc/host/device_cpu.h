// The CPU as a device: memory, the choice of code, and what a context runs its kernels on.
//
// A device type provides what CpuDevice does; Model and Context know nothing else of it. The
// others: device_cuda.h, device_emulated.h.
#pragma once
#include <sys/mman.h>

#include <chrono>
#include <cstdlib>
#include <cstring>
#include <memory>
#include <string>

#include "vitc/cpu/threads.h"
#include "vitc/host/cpuid.h"
#include "vitc/host/error.h"
#include "vitc/host/payload.h"
#include "vitc/host/table.h"

namespace vitc::host {

class CpuDevice {
 public:
  static constexpr uint64_t kAlignment = 1;     // of inputs and outputs
  static constexpr bool kAsynchronous = false;  // whether kernels still run when a run returns

  explicit CpuDevice(int32_t index) {
    if (index != 0) {
      fail(VITC_UNSUPPORTED_DEVICE, "device %d: the library runs on the CPU, which is device 0",
           index);
    }
  }

  // Index of the best of `isas` that this machine can run, or of the one that VITC_ISA names.
  static int32_t choose_code(List<const char*> isas) {
    const CpuFeatures features = CpuFeatures::probe();
    std::string names;
    for (const char* isa : isas) names += names.empty() ? isa : std::string(", ") + isa;
    const char* wanted = std::getenv("VITC_ISA");
    if (wanted != nullptr && *wanted == '\0') wanted = nullptr;
    bool known = false;
    for (int32_t i = isas.size - 1; i >= 0; --i) {
      const bool named = wanted == nullptr || std::strcmp(wanted, isas[i]) == 0;
      known = known || named;
      if (named && features.has(isas[i])) return i;
    }
    if (!known) {
      fail(VITC_INVALID_ARGUMENT, "VITC_ISA is '%s', the library has code for: %s", wanted,
           names.c_str());
    }
    if (wanted != nullptr) {
      fail(VITC_UNSUPPORTED_DEVICE, "VITC_ISA is '%s', which this processor lacks", wanted);
    }
    fail(VITC_UNSUPPORTED_DEVICE, "this processor has none of the instruction sets %s%s",
         names.c_str(), features.avx2 ? "" : " (AVX2, FMA and F16C are the least)");
  }

  // Uninitialised, aligned for vectors; large blocks ask for huge pages, which spare GEMMs TLB
  // misses.
  static std::shared_ptr<std::byte> allocate(uint64_t bytes, const char* purpose) {
    constexpr size_t kVector = 64, kHugePage = size_t{2} << 20;
    const size_t alignment = bytes < kHugePage ? kVector : kHugePage;
    void* memory = nullptr;
    if (::posix_memalign(&memory, alignment, bytes == 0 ? kVector : bytes) != 0) {
      fail(VITC_OUT_OF_MEMORY, "cannot allocate %" PRIu64 " bytes for %s", bytes, purpose);
    }
    if (alignment == kHugePage) ::madvise(memory, bytes, MADV_HUGEPAGE);
    return {static_cast<std::byte*>(memory), [](std::byte* block) { std::free(block); }};
  }

  // Where kernels read mapped weights: here, in the mapping itself.
  static Bytes place(Bytes mapped, uint64_t /*bytes*/) { return mapped; }

  static void upload(std::byte* to, const void* from, uint64_t bytes) {
    std::memcpy(to, from, bytes);
  }
  static void download(void* to, const std::byte* from, uint64_t bytes) {
    std::memcpy(to, from, bytes);
  }

  // Reports the code that the kernel of a step returned.
  [[noreturn]] static void fail_step(int32_t index, const char* name, int code) {
    fail(VITC_INTERNAL, "step %d (%s) failed with code %d", index, name, code);
  }

  // What one context runs its kernels on, one after the other. They have finished when they return.
  class Lane {
   public:
    Lane(const CpuDevice& /*device*/, int32_t threads) : executor_(check(threads)) {}

    int threads() const { return executor_.threads(); }
    Executor* executor(void* /*stream*/) { return &executor_; }

    // Runs a Context::Work; whether the caller records it, to run it again without us.
    template <class Work>
    bool run(const Work& work) {
      work.launch(work.stream());
      return false;
    }
    void wait() {}             // for the latest run
    void finish() noexcept {}  // the same, before the end
    void forget() {}           // the weights' addresses change: wait, and keep nothing of them

    // `launch` calls mark(); when time() returns, microseconds() can be asked.
    using Mark = std::chrono::steady_clock::time_point;
    template <class Launch>
    void time(void* /*stream*/, const Launch& launch) {
      launch();
    }
    static void mark(Mark& mark, void* /*stream*/) { mark = std::chrono::steady_clock::now(); }
    static float microseconds(Mark from, Mark to) {
      return std::chrono::duration<float, std::micro>(to - from).count();
    }

   private:
    static int check(int32_t threads) {
      constexpr int32_t kMost = 4096;
      if (threads < 0 || threads > kMost) {
        fail(VITC_INVALID_ARGUMENT, "threads is %d; 1 to %d, or 0 for all", threads, kMost);
      }
      return threads;
    }

    Executor executor_;
  };
};

}  // namespace vitc::host
