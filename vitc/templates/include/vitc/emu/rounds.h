// The rounds of a cluster: in each, every warp runs as far as it can; then barriers that are
// complete let their threads go on. Asynchronous copies and products are done last, when nobody can
// go on without them.
#pragma once

#include <cstring>

#include "vitc/emu/barrier.h"
#include "vitc/emu/wgmma.h"

namespace vitc::emu {

// Runs the lanes of one warp that the schedule does not hold until none can go on: at a barrier or
// another wait, or exited; false on failure.
inline bool run_warp(Block& block, unsigned warp) {
  Machine& m = *machine;
  m.here = &block;
  const uint64_t held = m.schedule.held(warp, ++m.turns);
  if (held == ~uint64_t(0)) return true;
  block.resuming &= ~(1u << warp);
  Thread* lane = block.threads + warp * kWarp;
  unsigned count = m.thread_count - warp * kWarp < kWarp ? m.thread_count - warp * kWarp : kWarp;
  unsigned order[kWarp];
  for (bool first = true;; first = false) {
    if (first || m.schedule.random()) {
      m.schedule.permute(order, count, ++m.turns);
      m.lanes = 0;
      for (unsigned i = 0; i < count; ++i) {
        if ((held >> order[i] & 1) == 0) m.order[m.lanes++] = lane + order[i];
      }
    }
    m.position = 0;
    while (m.position < m.lanes && m.order[m.position]->state != State::ready) ++m.position;
    if (m.position < m.lanes) {
      m.current = m.order[m.position];
      vitc_emu_switch(&m.host_stack_pointer, m.current->stack_pointer);
      if (m.failed) return false;
    }
    const Thread* waiting = nullptr;
    for (unsigned i = 0; i < count && waiting == nullptr; ++i) {
      if (lane[i].state == State::at_warp) waiting = lane + i;
    }
    if (waiting == nullptr) return true;
    for (unsigned i = 0; i < count; ++i) {
      // The others wait for it.
      if (lane[i].state == State::at_phase || lane[i].state == State::ready) return true;
    }
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
    for (unsigned i = 0; i < count; ++i) lane[i].state = State::ready, lane[i].waits = 0;
  }
}

// Releases a block's barriers that are complete; false on failure.
inline bool release_block_barriers(Block& block, bool* progress) {
  Machine& m = *machine;
  for (unsigned id = 1; id < 16; ++id) {
    if (block.named[id].arrived == 0 || block.named[id].arrived < block.named[id].threads) continue;
    release_named(block, id);
    *progress = true;
  }
  const Thread* first = nullptr;
  for (unsigned i = 0; i < m.thread_count; ++i) {
    const Thread& t = block.threads[i];
    if (t.state != State::at_block || t.barrier != 0) return true;
    first = first == nullptr ? &t : first;
    if (t.site == first->site) continue;
    fail_block(first, first->site, "divergent block barrier: thread %u is at another, line %d",
               t.id, t.site.line);
    return false;
  }
  for (unsigned i = 0; i < m.thread_count; ++i) {
    block.threads[i].state = State::ready;
    block.threads[i].waits = 0;
  }
  ++m.statistics.barriers;
  *progress = true;
  return true;
}

// The cluster's barrier is `aligned`: a warp must be whole when it comes there. It is not where
// some lanes have been waiting for copies and nothing has brought them together with the others
// since.
inline bool check_whole(const Thread& thread) {
  const Thread& first = thread.block->threads[thread.id - thread.lane];
  if (first.state == State::exited || thread.waits == first.waits) return true;
  fail_block(&thread, thread.site,
             "cluster barrier in a divergent warp: thread %u has waited %u "
             "times for an mbarrier, thread %u %u times, and no sync_warp() since",
             first.id, first.waits, thread.id, thread.waits);
  return false;
}

// Threads whose mbarrier has turned, and the cluster's barrier when all that run stand at it; false
// on failure.
inline bool release_others(bool* progress) {
  Machine& m = *machine;
  bool meet = true, any = false;
  for (Thread& t : m.threads) {
    any = any || t.state == State::at_cluster;
    meet = meet && (t.state == State::at_cluster || t.state == State::exited);
    if (t.state == State::at_phase && phase_done(t)) {
      t.state = State::ready;
      *progress = true;
    }
  }
  if (!meet || !any) return true;
  for (Thread& t : m.threads) {
    if (t.state == State::at_cluster && !check_whole(t)) return false;
  }
  m.met = true;
  for (Thread& t : m.threads) {
    if (t.state == State::at_cluster) t.state = State::ready;
  }
  ++m.statistics.barriers;
  *progress = true;
  return true;
}

// Nobody can go on: says who waits for what.
inline void report_deadlock() {
  const Thread *waiting = nullptr, *other = nullptr;
  for (const Thread& t : machine->threads) {
    if (t.state == State::exited) continue;
    if (waiting == nullptr || (t.state == State::at_phase && waiting->state != State::at_phase)) {
      waiting = &t;
    }
  }
  for (const Thread& t : machine->threads) {
    const bool together = t.state == waiting->state && t.barrier == waiting->barrier &&
                          t.phase_barrier == waiting->phase_barrier;
    if (!together && other == nullptr && t.block == waiting->block) other = &t;
  }
  char where[96] = "";
  if (other != nullptr) {
    std::snprintf(where, sizeof where, "thread %u is at %s, line %d", other->id, other->operation,
                  other->site.line);
  }
  if (waiting->state == State::at_phase) {
    Phase phase{};
    Phase::read(waiting->phase_barrier, &phase);
    fail_block(waiting, waiting->site,
               "deadlock: waits for parity %u of the mbarrier at shared offset %ld, where %u of %u "
               "arrivals and %d bytes are missing; %s",
               waiting->parity, shared_offset(waiting->phase_barrier), phase.pending,
               phase.arrivals, phase.bytes, where);
  } else if (other != nullptr) {
    fail_block(waiting, waiting->site, "divergent %s: %s", waiting->operation, where);
  } else {
    fail_block(waiting, waiting->site, "%s waits for more threads than there are",
               waiting->operation);
  }
}

// Lets threads go on after a round; false on failure. *done: all have exited.
inline bool advance(bool* done) {
  Machine& m = *machine;
  *done = true;
  for (const Thread& t : m.threads) *done = *done && t.state == State::exited;
  if (*done) return true;
  bool progress = false;
  for (const auto& block : m.blocks) {
    if (!release_block_barriers(*block, &progress)) return false;
  }
  if (!release_others(&progress)) return false;
  bool ready = false;  // some are held: now and then what they could still touch lands before
  for (const Thread& t : m.threads) ready = ready || t.state == State::ready;
  if (!progress && ready && !m.schedule.early(++m.turns)) return true;
  for (int step = 0; step < 2 && !progress; ++step) {
    const bool products = (step == 1) != m.schedule.newest_first();
    if (!(products ? finish_awaited(&progress) : land_awaited(&progress))) return false;
  }
  if (!progress && !ready) report_deadlock();
  return progress || ready;
}

}  // namespace vitc::emu
