// The emulated multiprocessor: the threads of the running cluster of blocks, mostly of one, and how
// a fault is reported. Clusters run one after another, so one machine serves a whole library;
// launches from several host threads take turns (launch.h).
#pragma once

#include <cstdarg>
#include <cstdint>
#include <cstdio>
#include <memory>
#include <vector>

#include "vitc/emu/fibre.h"
#include "vitc/emu/pending.h"
#include "vitc/emu/schedule.h"
#include "vitc/emu/shared.h"
#include "vitc/emu/site.h"

#define VITC_EMU_PRIVATE __attribute__((visibility("hidden")))

namespace vitc::emu {

// Lanes that execute a collective together: a property of the target, never of the host.
#if !defined(VITC_EMU_WARP)
#define VITC_EMU_WARP 32
#endif
constexpr unsigned kWarp = VITC_EMU_WARP;
static_assert(kWarp == 32 || kWarp == 64, "a warp has 32 lanes (CUDA) or 64 (AMD)");
constexpr unsigned kMaxThreads = 1024;

struct Dim3 {
  unsigned x, y, z;
  constexpr Dim3(unsigned x_ = 1, unsigned y_ = 1, unsigned z_ = 1) : x(x_), y(y_), z(z_) {}
  constexpr uint64_t count() const { return uint64_t(x) * y * z; }
};

enum class State { ready, at_warp, at_block, at_phase, at_products, at_cluster, exited };

struct Thread {
  void* stack_pointer = nullptr;
  Block* block = nullptr;
  Dim3 index;
  unsigned id = 0, lane = 0;
  State state = State::ready;
  const char* operation = "start";  // the collective or barrier it last reached
  Site site;
  void* operands = nullptr;  // of the collective it waits at
  unsigned barrier = 0, barrier_threads = 0;
  std::vector<PendingCopy> copies;
  unsigned copy_group = 0;

  unsigned waits = 0;                 // for mbarriers, since its warp met
  uint64_t* phase_barrier = nullptr;  // mbarrier that it waits for, and the parity
  unsigned parity = 0;
  std::vector<PendingProduct> products;
  std::vector<Accumulator> accumulators;
  unsigned product_group = 0, products_pending = 0;
  bool products_fenced = false;   // wgmma.fence since the last wait
  bool registers_fenced = false;  // and since the last commit
  uint32_t fenced = 0;            // its latest fence.proxy.async, of Machine::fences
  unsigned registers = 0;         // setmaxnreg
  Site registers_site;
};

struct Block {
  struct Named {
    unsigned arrived = 0, threads = 0;
  };
  Dim3 index;
  unsigned rank = 0;  // in the cluster
  SharedMemory shared;
  Thread* threads = nullptr;
  Named named[16];
  unsigned running = 0;     // threads that have not exited
  bool follows = false;     // some thread has waited for the kernel before
  unsigned resuming = 0;    // a bit for each warp whose products are done and which has not gone on
  std::vector<Read> reads;  // of these products
};

// Counts over one launch, for tests of speed-relevant properties.
struct Statistics {
  uint64_t blocks = 0, collectives = 0, barriers = 0, mma = 0;
  uint64_t ldmatrix = 0;            // 8x8 matrices read
  uint64_t ldmatrix_conflicts = 0;  // extra shared-memory passes they needed
  uint64_t tensor_copies = 0, wgmma = 0;
};

using Collective = void (*)(void* const* operands);  // operands[lane] lies on that lane's stack

struct Machine {
  std::vector<Thread> threads;  // of the cluster's blocks, one after another
  std::vector<std::unique_ptr<Block>> blocks;
  Block* here = nullptr;      // block of the warp that runs
  Thread* current = nullptr;  // null while the host side runs
  void* host_stack_pointer = nullptr;
  FibreStacks stacks;
  std::vector<PendingTensorCopy> tensor_copies;
  std::vector<BarrierInit> barrier_inits;
  uint32_t fences = 0;  // fence.proxy.async so far
  std::unique_ptr<char[]> product_memory;
  Schedule schedule;
  Statistics statistics;

  const char* kernel = "";
  Dim3 grid, block;
  unsigned thread_count = 0, cluster = 1;  // threads of a block, blocks of a cluster
  bool met = false;                        // the running cluster's blocks have, at its barrier
  void (*body)(const void* closure) = nullptr;
  const void* closure = nullptr;

  Collective collective = nullptr;  // of the warp that runs
  Thread* order[kWarp] = {};        // of its lanes
  unsigned position = 0, lanes = 0;
  uint32_t turns = 0;

  bool failed = false;
  const void* fault_code = nullptr;  // the instruction that faulted, if one did
  char message[1024] = "";

  // Scratch memory for one product (wgmma.h).
  void* product_tile() {
    constexpr size_t kBytes = 96 << 10;
    if (product_memory == nullptr) product_memory.reset(new char[kBytes + 64]);
    return reinterpret_cast<void*>((reinterpret_cast<uintptr_t>(product_memory.get()) + 63) &
                                   ~uintptr_t(63));
  }
};

inline VITC_EMU_PRIVATE Machine* machine = nullptr;

// Records the first failure of a launch: "kernel K, block (x,y,z), thread t: what (file:line)".
inline void record_failure(const Thread* thread, Site site, const char* format, va_list arguments) {
  Machine& m = *machine;
  if (m.failed) return;
  m.failed = true;
  Dim3 at = (thread != nullptr ? thread->block : m.here)->index;
  int n = std::snprintf(m.message, sizeof m.message, "emulated kernel %s, block (%u,%u,%u)",
                        m.kernel, at.x, at.y, at.z);
  if (thread != nullptr) {
    n += std::snprintf(m.message + n, sizeof m.message - n, ", thread %u", thread->id);
  }
  n += std::snprintf(m.message + n, sizeof m.message - n, ": ");
  n += std::vsnprintf(m.message + n, sizeof m.message - n, format, arguments);
  if (n < int(sizeof m.message) && site.line > 0) {
    std::snprintf(m.message + n, sizeof m.message - n, " (%s:%d)", site.file, site.line);
  }
}

// Ends the launch from the host side.
__attribute__((format(printf, 3, 4))) inline void fail_block(const Thread* thread, Site site,
                                                             const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  record_failure(thread, site, format, arguments);
  va_end(arguments);
}

// Ends the launch from the running thread: its fibre, like all others, is never resumed. Device
// code has no destructors that matter, so nothing is lost by that.
[[noreturn]] __attribute__((format(printf, 2, 3))) inline void fail(Site site, const char* format,
                                                                    ...) {
  Machine& m = *machine;
  va_list arguments;
  va_start(arguments, format);
  record_failure(m.current, site, format, arguments);
  va_end(arguments);
  void* abandoned;
  m.current = nullptr;
  vitc_emu_switch(&abandoned, m.host_stack_pointer);
  __builtin_unreachable();
}

// Stops the running thread until the scheduler has done what `state` waits for. The next ready lane
// of the warp runs at once; after the last one control goes back to run_warp.
inline void stop(State state, const char* operation, void* operands, Site site) {
  Machine& m = *machine;
  Thread* self = m.current;
  self->state = state;
  self->operation = operation;
  self->operands = operands;
  self->site = site;
  while (++m.position < m.lanes) {
    Thread* next = m.order[m.position];
    if (next->state == State::ready) {
      m.current = next;
      vitc_emu_switch(&self->stack_pointer, next->stack_pointer);
      return;
    }
  }
  m.current = nullptr;
  vitc_emu_switch(&self->stack_pointer, m.host_stack_pointer);
}

}  // namespace vitc::emu
