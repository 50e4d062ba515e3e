// Block barriers. Barrier 0 takes every thread of the block, from one place in the source; a named
// barrier releases those who wait at it as soon as the stated number of threads has arrived.
#pragma once

#include "vitc/emu/machine.h"

namespace vitc::emu {

inline void sync_block(Site site = Site::here()) {
  Thread* self = machine->current;
  self->barrier = 0;
  self->barrier_threads = machine->thread_count;
  stop(State::at_block, "block barrier", nullptr, site);
}

inline void release_named(Block& block, unsigned id) {
  for (unsigned i = 0; i < machine->thread_count; ++i) {
    Thread& t = block.threads[i];
    if (t.state == State::at_block && t.barrier == id) t.state = State::ready;
  }
  block.named[id] = {};
  ++machine->statistics.barriers;
}

// bar.arrive id, threads
inline void arrive_named(unsigned id, unsigned threads, Site site) {
  if (id == 0 || id > 15 || threads == 0 || threads % kWarp != 0 ||
      threads > machine->thread_count) {
    fail(site,
         "named barrier %u with %u threads: want an id of 1..15 and whole warps of this block", id,
         threads);
  }
  Block::Named& named = machine->here->named[id];
  if (named.threads > 0 && named.arrived == named.threads) release_named(*machine->here, id);
  if (named.arrived > 0 && named.threads != threads) {
    fail(site, "named barrier %u with %u threads, which others have with %u", id, threads,
         named.threads);
  }
  named.threads = threads;
  ++named.arrived;
}

// bar.sync id, threads
inline void sync_named(unsigned id, unsigned threads, Site site = Site::here()) {
  Thread* self = machine->current;
  arrive_named(id, threads, site);
  self->barrier = id;
  self->barrier_threads = threads;
  stop(State::at_block, "named barrier", nullptr, site);
}

}  // namespace vitc::emu
