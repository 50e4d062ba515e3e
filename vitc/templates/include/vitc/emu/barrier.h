// Block barriers. Barrier 0 takes every thread of the block, from one place in the source; a named
// barrier releases its threads as soon as the stated number of them has arrived.
//
// mbarriers find their place here: a thread that polls one stops in a state of its own, and the
// scheduler's round (launch.h) resumes it when the phase has completed; a round without progress is
// already reported as a deadlock.
#pragma once

#include "vitc/emu/machine.h"

namespace vitc::emu {

inline void sync_block(Site site = Site::here()) {
  Thread* self = machine->current;
  self->barrier = 0;
  self->barrier_threads = machine->thread_count;
  stop(State::at_block, "block barrier", nullptr, site);
}

// bar.sync id, threads
inline void sync_named(unsigned id, unsigned threads, Site site = Site::here()) {
  Thread* self = machine->current;
  if (id == 0 || id > 15 || threads == 0 || threads % kWarp != 0 ||
      threads > machine->thread_count) {
    fail(site,
         "named barrier %u with %u threads: want an id of 1..15 and whole warps of this block", id,
         threads);
  }
  self->barrier = id;
  self->barrier_threads = threads;
  stop(State::at_block, "named barrier", nullptr, site);
}

}  // namespace vitc::emu
