// A fibre: a stack and the place where it stopped. One fibre runs one GPU thread.
//
// The switch saves what the System V x86-64 ABI calls callee-saved (rbp, rbx, r12-r15) and the
// stack pointer. It leaves by `jmp`, not `ret`: the return-stack predictor never matches across
// stacks, and a mispredicted `ret` made every switch 2.3 times slower.
//
// Another processor needs its own `vitc_emu_switch` and `prepare_fibre`. On aarch64 (AAPCS64): save
// x19-x30, sp and the low halves d8-d15, and let the prepared frame hold fibre_entry in x30.
// Nothing else in this folder depends on the processor but the signal frame in fault.h (pc and sp).
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstddef>
#include <cstdint>

#if !defined(__x86_64__)
#error "vitc/emu/fibre.h: the fibre switch is written for x86-64 only; see the note at the top"
#endif

extern "C" __attribute__((visibility("hidden"))) void vitc_emu_switch(void** save, void* load);

asm(R"(
.pushsection .text.vitc_emu_switch,"axG",@progbits,vitc_emu_switch,comdat
.weak vitc_emu_switch
.hidden vitc_emu_switch
.type vitc_emu_switch,@function
vitc_emu_switch:
  push %rbp
  push %rbx
  push %r12
  push %r13
  push %r14
  push %r15
  mov %rsp, (%rdi)
  mov %rsi, %rsp
  pop %r15
  pop %r14
  pop %r13
  pop %r12
  pop %rbx
  pop %rbp
  pop %rcx
  jmp *%rcx
.size vitc_emu_switch, .-vitc_emu_switch
.popsection
)");

namespace vitc::emu {

// Stacks for up to `count` fibres in one mapping, an unreadable page below each, so that a kernel
// with too large local arrays faults instead of writing over its neighbour.
class FibreStacks {
 public:
  static constexpr size_t kBytes = 128 << 10;

  // Returns false when the system gives no memory.
  bool reserve(unsigned count) {
    if (count <= count_) return true;
    release();
    void* base = mmap(nullptr, kBytes * count, PROT_READ | PROT_WRITE,
                      MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    if (base == MAP_FAILED) return false;
    base_ = static_cast<char*>(base);
    count_ = count;
    for (unsigned i = 0; i < count; ++i) mprotect(base_ + i * kBytes, 4096, PROT_NONE);
    return true;
  }

  // The first stack pointer of fibre i. Tops are staggered by a few cache lines: equal tops put the
  // hot frames of all fibres into the same cache sets.
  void* top(unsigned i) const {
    uintptr_t address =
        reinterpret_cast<uintptr_t>(base_ + (i + 1) * kBytes) - 256 - (i % 61) * 320;
    return reinterpret_cast<void*>(address & ~uintptr_t(63));
  }

  bool holds(const void* address) const {
    auto* p = static_cast<const char*>(address);
    return p >= base_ && p < base_ + kBytes * count_;
  }

  void release() {
    if (base_ != nullptr) munmap(base_, kBytes * count_);
    base_ = nullptr;
    count_ = 0;
  }

  ~FibreStacks() { release(); }

 private:
  char* base_ = nullptr;
  unsigned count_ = 0;
};

// Lays out the frame that the first switch to a fibre pops; the fibre then begins in `entry`, which
// never returns.
inline void* prepare_fibre(void* top, void (*entry)()) {
  void** frame = static_cast<void**>(top);
  *--frame = nullptr;                         // the return address of entry: ends a backtrace
  *--frame = reinterpret_cast<void*>(entry);  // popped into rcx
  for (int saved = 0; saved < 6; ++saved) *--frame = nullptr;
  return frame;
}

}  // namespace vitc::emu
