// A launch: blocks one after another; inside a block, rounds in which every warp runs up to its
// next block barrier, lane by lane from collective to collective.
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "vitc/emu/fault.h"
#include "vitc/emu/machine.h"

namespace vitc::emu {

constexpr int kLaunchOk = 0, kLaunchFailed = 1;

inline VITC_EMU_PRIVATE std::mutex launch_mutex;
inline VITC_EMU_PRIVATE std::unique_ptr<Machine> machine_owner;
inline VITC_EMU_PRIVATE thread_local char error_text[1024] = "";
inline VITC_EMU_PRIVATE Statistics last_statistics;  // of the latest launch

// The message of the calling host thread's last failed launch.
inline const char* last_error() { return error_text; }

inline void fibre_entry() {
  Machine& m = *machine;
  m.body(m.closure);
  if (!m.current->copies.empty()) {
    fail(m.current->site, "exit with %zu cp.async not waited for, after its last %s",
         m.current->copies.size(), m.current->operation);
  }
  stop(State::exited, "exit", nullptr, Site{});
  __builtin_unreachable();
}

// Runs the lanes of one warp until all stand at a block barrier or have exited; false on failure.
inline bool run_warp(unsigned warp) {
  Machine& m = *machine;
  Thread* lane = m.threads + warp * kWarp;
  unsigned count = m.thread_count - warp * kWarp < kWarp ? m.thread_count - warp * kWarp : kWarp;
  unsigned order[kWarp];
  m.lanes = count;
  for (bool first = true;; first = false) {
    if (first || m.schedule.random()) {
      m.schedule.permute(order, count, ++m.turns);
      for (unsigned i = 0; i < count; ++i) m.order[i] = lane + order[i];
    }
    m.position = 0;
    while (m.position < count && m.order[m.position]->state != State::ready) ++m.position;
    if (m.position < count) {
      m.current = m.order[m.position];
      vitc_emu_switch(&m.host_stack_pointer, m.current->stack_pointer);
      if (m.failed) return false;
    }
    const Thread* waiting = nullptr;
    for (unsigned i = 0; i < count && waiting == nullptr; ++i) {
      if (lane[i].state == State::at_warp) waiting = lane + i;
    }
    if (waiting == nullptr) return true;
    void* operands[kWarp];
    for (unsigned i = 0; i < count; ++i) {
      if (lane[i].state != State::at_warp || lane[i].site != waiting->site ||
          std::strcmp(lane[i].operation, waiting->operation) != 0) {
        fail_block(waiting, waiting->site, "divergent %s: thread %u is at %s, line %d",
                   waiting->operation, lane[i].id, lane[i].operation, lane[i].site.line);
        return false;
      }
      operands[i] = lane[i].operands;
    }
    if (count != kWarp) {
      fail_block(waiting, waiting->site, "%s in a partial warp of %u threads", waiting->operation,
                 count);
      return false;
    }
    m.collective(operands);
    ++m.statistics.collectives;
    for (unsigned i = 0; i < count; ++i) lane[i].state = State::ready;
  }
}

// Releases the barriers that are complete. Returns false, with a failure recorded, if threads wait
// and none can go on; *done says that all have exited.
inline bool release_barriers(bool* done) {
  Machine& m = *machine;
  unsigned arrived[16] = {};
  const Thread *waiting = nullptr, *first[16] = {};
  for (unsigned i = 0; i < m.thread_count; ++i) {
    const Thread& t = m.threads[i];
    if (t.state != State::at_block) continue;
    waiting = waiting == nullptr ? &t : waiting;
    if (first[t.barrier] == nullptr) first[t.barrier] = &t;
    ++arrived[t.barrier];
  }
  *done = waiting == nullptr;
  if (*done) return true;
  bool progress = false;
  for (unsigned id = 0; id < 16; ++id) {
    if (first[id] == nullptr || arrived[id] < first[id]->barrier_threads) continue;
    for (unsigned i = 0; i < m.thread_count; ++i) {
      Thread& t = m.threads[i];
      if (t.state != State::at_block || t.barrier != id) continue;
      if (id == 0 && t.site != first[0]->site) {
        fail_block(first[0], first[0]->site,
                   "divergent block barrier: thread %u is at another, line %d", t.id, t.site.line);
        return false;
      }
      t.state = State::ready;
    }
    ++m.statistics.barriers;
    progress = true;
  }
  if (progress) return true;
  for (unsigned i = 0; i < m.thread_count; ++i) {
    const Thread& t = m.threads[i];
    if (t.state == State::at_block && t.barrier == waiting->barrier) continue;
    fail_block(waiting, waiting->site, "divergent %s: thread %u is at %s, line %d",
               waiting->operation, t.id, t.operation, t.site.line);
    return false;
  }
  fail_block(waiting, waiting->site, "%s waits for more threads than there are",
             waiting->operation);
  return false;
}

inline bool run_block(size_t shared_bytes) {
  Machine& m = *machine;
  m.shared.begin_block(shared_bytes);
  for (unsigned i = 0; i < m.thread_count; ++i) {
    Thread& t = m.threads[i];
    t.index = Dim3(i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y));
    t.id = i;
    t.lane = i % kWarp;
    t.state = State::ready;
    t.operation = "start";
    t.site = Site{};
    t.copies.clear();
    t.copy_group = 0;
    t.stack_pointer = prepare_fibre(m.stacks.top(i), fibre_entry);
  }
  unsigned warps = (m.thread_count + kWarp - 1) / kWarp, order[kMaxThreads / kWarp];
  for (bool done = false; !done;) {
    m.schedule.permute(order, warps, ++m.turns);
    for (unsigned i = 0; i < warps; ++i) {
      if (!run_warp(order[i])) return false;
    }
    if (!release_barriers(&done)) return false;
  }
  ++m.statistics.blocks;
  if (m.shared.slack_written()) {
    fail_block(nullptr, Site{}, "a thread wrote outside the %zu bytes of dynamic shared memory",
               shared_bytes);
    return false;
  }
  return true;
}

// Runs `body` as every thread of the grid. `kernel` names it in messages. Returns kLaunchOk, or
// kLaunchFailed with last_error() set; what was written until then stays written.
template <class Body>
int launch(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, const Body& body) {
  std::lock_guard<std::mutex> lock(launch_mutex);
  if (machine == nullptr) {
    machine_owner.reset(new (std::nothrow) Machine);
    machine = machine_owner.get();
  }
  if (machine == nullptr || block.count() > kMaxThreads || block.count() == 0 ||
      grid.count() == 0 || shared_bytes > SharedMemory::kLimit || !machine->shared.reserve() ||
      !machine->stacks.reserve(unsigned(block.count()))) {
    std::snprintf(
        error_text, sizeof error_text,
        "emulated kernel %s: cannot launch a grid of (%u,%u,%u) blocks of (%u,%u,%u) threads "
        "with %zu bytes of shared memory",
        kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes);
    return kLaunchFailed;
  }
  Machine& m = *machine;
  m.kernel = kernel;
  m.grid = grid;
  m.block = block;
  m.thread_count = unsigned(block.count());
  m.closure = &body;
  m.body = [](const void* closure) { (*static_cast<const Body*>(closure))(); };
  m.schedule = Schedule::from_environment();
  m.statistics = Statistics();
  m.failed = false;
  m.fault_code = nullptr;
  m.turns = 0;

  unsigned blocks = unsigned(grid.count());
  std::unique_ptr<unsigned[]> order(new unsigned[blocks]);
  m.schedule.permute(order.get(), blocks, 0);
  {
    auto guard = std::make_unique<FaultGuard>();
    for (unsigned i = 0; i < blocks && !m.failed; ++i) {
      unsigned b = order[i];
      m.block_index = Dim3(b % grid.x, b / grid.x % grid.y, b / (grid.x * grid.y));
      run_block(shared_bytes);
    }
  }
  last_statistics = m.statistics;
  if (!m.failed) return kLaunchOk;
  append_fault_line();
  std::memcpy(error_text, m.message, sizeof error_text);
  return kLaunchFailed;
}

}  // namespace vitc::emu
