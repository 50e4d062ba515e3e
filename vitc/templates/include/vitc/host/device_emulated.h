// The emulated GPU as a device: kernels run on the CPU (vitc/emu), in host memory. For builds with
// -DVITC_EMULATE. device_cpu.h says what each part is for.
#pragma once
#include <chrono>
#include <cstring>
#include <memory>

#include "vitc/emu/launch.h"
#include "vitc/host/cuda/arch.h"
#include "vitc/host/error.h"
#include "vitc/host/payload.h"
#include "vitc/host/table.h"

namespace vitc::host {

class EmulatedDevice {
 public:
  static constexpr uint64_t kAlignment = 16;  // as on the GPU
  static constexpr bool kAsynchronous = false;

  explicit EmulatedDevice(int32_t index) {
    if (index != 0) {
      fail(VITC_UNSUPPORTED_DEVICE, "device %d: the library emulates one GPU, which is device 0",
           index);
    }
  }

  // The most demanding, or the one that VITC_ISA names: all of them can be emulated.
  static int32_t choose_code(List<const char*> isas) {
    const char* wanted = wanted_isa(isas);
    int32_t i = isas.size - 1;
    while (wanted != nullptr && std::strcmp(isas[i], wanted) != 0) --i;
    return i;
  }

  // Full of NaN, and between pages that fault: what a kernel reads too early or too far shows.
  static std::shared_ptr<std::byte> allocate(uint64_t bytes, const char* purpose) {
    if (bytes == 0) return nullptr;
    void* memory = emu::device_memory.allocate(bytes, purpose);
    if (memory == nullptr) {
      fail(VITC_OUT_OF_MEMORY, "cannot allocate %" PRIu64 " bytes for %s", bytes, purpose);
    }
    return {static_cast<std::byte*>(memory),
            [](std::byte* block) { emu::device_memory.release(block); }};
  }

  static Bytes place(const Bytes& mapped, uint64_t bytes) {
    const std::shared_ptr<std::byte> block = allocate(bytes, "the weights");
    upload(block.get(), mapped.get(), bytes);
    return block;
  }

  static void upload(std::byte* to, const void* from, uint64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }
  static void download(void* to, const std::byte* from, uint64_t bytes) {
    if (bytes > 0) std::memcpy(to, from, bytes);
  }

  [[noreturn]] static void fail_step(int32_t index, const char* name, int /*code*/) {
    fail(VITC_DEVICE_ERROR, "step %d (%s): %s", index, name, emu::last_error());
  }

  class Lane {
   public:
    using Mark = std::chrono::steady_clock::time_point;

    Lane(const EmulatedDevice& /*device*/, int32_t /*threads*/) {}

    static int threads() { return 1; }
    static Executor* executor(void* /*stream*/) { return nullptr; }

    template <class Work>
    bool run(const Work& work) {
      work.launch(work.stream());
      return false;
    }
    void wait() {}
    void finish() noexcept {}
    void forget() {}

    template <class Launch>
    void time(void* /*stream*/, const Launch& launch) {
      launch();
    }
    static void mark(Mark& mark, void* /*stream*/) { mark = std::chrono::steady_clock::now(); }
    static float microseconds(Mark from, Mark to) {
      return std::chrono::duration<float, std::micro>(to - from).count();
    }
  };
};

}  // namespace vitc::host
