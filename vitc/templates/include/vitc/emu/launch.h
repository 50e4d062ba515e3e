// A launch: clusters, mostly of one block, one after another, each in rounds (rounds.h).
#pragma once

#include <cstring>
#include <memory>
#include <mutex>
#include <new>

#include "vitc/emu/fault.h"
#include "vitc/emu/machine.h"
#include "vitc/emu/registers.h"
#include "vitc/emu/rounds.h"

namespace vitc::emu {

constexpr int kLaunchOk = 0, kLaunchFailed = 1;

inline VITC_EMU_PRIVATE std::mutex launch_mutex;
inline VITC_EMU_PRIVATE std::unique_ptr<Machine> machine_owner;
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
  if (!m.current->products.empty()) {
    fail(m.current->products[0].site, "exit with %zu products not waited for, the first",
         m.current->products.size());
  }
  --m.current->block->running;
  stop(State::exited, "exit", nullptr, Site{});
  __builtin_unreachable();
}

// Readies the blocks of a cluster: fresh shared memory, all threads at the kernel's begin.
inline void begin_cluster(unsigned index, size_t shared_bytes) {
  Machine& m = *machine;
  m.tensor_copies.clear();
  m.barrier_inits.clear();
  m.met = m.cluster == 1;
  for (unsigned rank = 0; rank < m.cluster; ++rank) {
    Block& block = *m.blocks[rank];
    const unsigned b = index * m.cluster + rank;
    block.index = Dim3(b % m.grid.x, b / m.grid.x % m.grid.y, b / (m.grid.x * m.grid.y));
    block.rank = rank;
    block.shared.begin_block(shared_bytes);
    block.threads = m.threads.data() + rank * m.thread_count;
    block.running = m.thread_count;
    block.resuming = 0;
    block.follows = false;
    for (Block::Named& named : block.named) named = {};
    for (unsigned i = 0; i < m.thread_count; ++i) {
      Thread& t = block.threads[i];
      t = Thread();
      t.block = &block;
      t.index = Dim3(i % m.block.x, i / m.block.x % m.block.y, i / (m.block.x * m.block.y));
      t.id = i;
      t.lane = i % kWarp;
      t.registers = launch_registers(m.thread_count);
      t.stack_pointer = prepare_fibre(m.stacks.top(rank * m.thread_count + i), fibre_entry);
    }
  }
  m.here = m.blocks[0].get();
}

// What a cluster must not leave behind; false, with a failure recorded, if it does.
inline bool end_cluster() {
  Machine& m = *machine;
  for (const PendingTensorCopy& copy : m.tensor_copies) {
    fail_block(nullptr, copy.site, "exit with %zu tensor copies that nobody waited for, the first",
               m.tensor_copies.size());
    return false;
  }
  for (const auto& block : m.blocks) {
    m.here = block.get();
    ++m.statistics.blocks;
    if (!check_registers(*block)) return false;
    if (block->shared.slack_written()) {
      fail_block(nullptr, Site{}, "a thread wrote outside the %zu bytes of dynamic shared memory",
                 block->shared.dynamic_bytes());
      return false;
    }
  }
  return true;
}

inline void run_cluster(unsigned index, size_t shared_bytes) {
  Machine& m = *machine;
  begin_cluster(index, shared_bytes);
  const unsigned warps = (m.thread_count + kWarp - 1) / kWarp, all = warps * m.cluster;
  std::vector<unsigned> order(all);
  for (bool done = false; !done;) {
    m.schedule.permute(order.data(), all, ++m.turns);
    for (unsigned i = 0; i < all; ++i) {
      if (!run_warp(*m.blocks[order[i] / warps], order[i] % warps)) return;
    }
    if (!advance(&done)) return;
  }
  end_cluster();
}

// Room for the threads of a cluster; false if there is none.
inline bool reserve_cluster(unsigned threads, unsigned cluster) {
  Machine& m = *machine;
  while (m.blocks.size() < cluster) m.blocks.push_back(std::make_unique<Block>());
  m.blocks.resize(cluster);
  m.threads.resize(threads * cluster);
  for (const auto& block : m.blocks) {
    if (!block->shared.reserve()) return false;
  }
  return m.stacks.reserve(threads * cluster);
}

// Runs `body` as every thread of the grid. `kernel` names it in messages. Returns kLaunchOk, or
// kLaunchFailed with last_error() set; what was written until then stays written. `cluster`
// neighbouring blocks (at most 16, dividing grid.x) run together.
template <class Body>
int launch(const char* kernel, Dim3 grid, Dim3 block, size_t shared_bytes, const Body& body,
           unsigned cluster = 1) {
  std::lock_guard<std::mutex> lock(launch_mutex);
  if (machine == nullptr) {
    machine_owner.reset(new (std::nothrow) Machine);
    machine = machine_owner.get();
  }
  if (machine == nullptr || block.count() > kMaxThreads || block.count() == 0 ||
      grid.count() == 0 || shared_bytes > SharedMemory::kLimit || cluster == 0 || cluster > 16 ||
      grid.x % cluster != 0 || !reserve_cluster(unsigned(block.count()), cluster)) {
    std::snprintf(
        error_text, sizeof error_text,
        "emulated kernel %s: cannot launch a grid of (%u,%u,%u) blocks of (%u,%u,%u) threads "
        "with %zu bytes of shared memory in clusters of %u",
        kernel, grid.x, grid.y, grid.z, block.x, block.y, block.z, shared_bytes, cluster);
    return kLaunchFailed;
  }
  Machine& m = *machine;
  m.kernel = kernel;
  m.grid = grid;
  m.block = block;
  m.thread_count = unsigned(block.count());
  m.cluster = cluster;
  m.closure = &body;
  m.body = [](const void* closure) { (*static_cast<const Body*>(closure))(); };
  m.schedule = Schedule::from_environment();
  m.statistics = Statistics();
  m.failed = false;
  m.fault_code = nullptr;
  m.turns = 0;

  unsigned clusters = unsigned(grid.count() / cluster);
  std::unique_ptr<unsigned[]> order(new unsigned[clusters]);
  m.schedule.permute(order.get(), clusters, 0);
  {
    auto guard = std::make_unique<FaultGuard>();
    device_memory.guard_held();
    for (unsigned i = 0; i < clusters && !m.failed; ++i) run_cluster(order[i], shared_bytes);
  }
  device_memory.let_go();
  last_statistics = m.statistics;
  if (!m.failed) return kLaunchOk;
  append_fault_line();
  std::memcpy(error_text, m.message, sizeof error_text);
  return kLaunchFailed;
}

}  // namespace vitc::emu
