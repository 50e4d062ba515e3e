// The async proxy, through which wgmma and bulk copies reach shared memory: what a thread wrote by
// ordinary instructions is visible there only behind a proxy fence (PTX ISA, "Async proxy",
// "membar, fence"). What asynchronous operations wrote themselves is visible to all when they
// complete.
//
// Of every 16 bytes of dynamic shared memory is known who wrote them last by `store` or cp.async.
// An asynchronous access wants a fence between that write and itself: by the writer, or by those
// who issue the access. That the fence comes before the access, and not only in time, is what
// barriers are for, and missing ones show as everywhere (schedule.h). Other C++ writes are not
// known: what is found changed without a known writer is an error, fenced or not.
#pragma once

#include <algorithm>
#include <cstring>

#include "vitc/emu/machine.h"

namespace vitc::emu {

// fence.mbarrier_init: copies may use the barriers that this thread initialised.
inline void barrier_fence() {
  auto& inits = machine->barrier_inits;
  const auto own = [](const BarrierInit& init) { return init.thread == machine->current; };
  inits.erase(std::remove_if(inits.begin(), inits.end(), own), inits.end());
}

// fence.proxy.async
inline void proxy_fence() {
  machine->current->fenced = ++machine->fences;
  barrier_fence();
}

// Products of a warpgroup are done for all its warps at once here. On a card each warp waits for
// its own: until it goes on, its products may still read what another one now writes.
inline void check_reads(const Block& block, const void* address, size_t bytes, Site site) {
  if (block.resuming == 0) return;
  const size_t begin = block.shared.offset(address);
  for (const Read& read : block.reads) {
    if ((read.warps & block.resuming) == 0 || begin >= read.end || begin + bytes <= read.begin) {
      continue;
    }
    fail(site,
         "write of %zu bytes to shared offset %zu, which products that another warp waits for may "
         "still read (%s:%d)",
         bytes, begin, read.site.file, read.site.line);
  }
}

// Bytes that the running thread writes to a block's shared memory.
inline void note_shared(Block& block, const void* address, size_t bytes, Site site) {
  check_reads(block, address, bytes, site);
  const size_t begin = block.shared.offset(address);
  for (size_t at = begin / 16 * 16; at < begin + bytes; at += 16) {
    block.shared.note(at, {site, machine->fences, machine->current});
  }
}

// Bytes that `self`, the running thread, writes or whose copy lands. What the kernel before reads
// or writes it may not overwrite yet.
inline void note_write(const Thread& self, const void* address, size_t bytes, Site site) {
  SharedMemory& shared = self.block->shared;
  if (!shared.in_dynamic(address)) {
    if (!self.block->follows && !shared.near(address) && !machine->stacks.holds(address)) {
      fail(site, "store to device memory before wait_for_previous_kernel()");
    }
    return;
  }
  note_shared(*self.block, address, bytes, site);
}

// Whether the async proxy sees the 16 bytes at `offset` when those who access them have fenced at
// `fenced`; if not, says why. `what` reads or writes them for `thread`.
inline bool visible(const Block& block, size_t offset, uint32_t fenced, const char* what,
                    const Thread* thread, Site site) {
  const SharedMemory& shared = block.shared;
  const SharedMemory::Write& write = shared.last_write(offset);
  if (write.site.line == 0) {
    if (shared.as_left(offset, 16)) return true;
    fail_block(thread, site,
               "%s at shared offset %zu, written neither by store() nor by a copy: the emulator "
               "cannot tell whether that was fenced for the async proxy",
               what, offset);
    return false;
  }
  if (write.fences < fenced || write.fences < write.thread->fenced) return true;
  fail_block(thread, site,
             "%s at shared offset %zu, which thread %u wrote (%s:%d): no fence.proxy.async since",
             what, offset, write.thread->id, write.site.file, write.site.line);
  return false;
}

// Ends the launch if a copy of the running thread counts at a barrier whose initialisation it may
// not see.
inline void check_init(const uint64_t* barrier, Site site) {
  for (const BarrierInit& init : machine->barrier_inits) {
    if (init.barrier != barrier) continue;
    fail(site,
         "a copy counts at an mbarrier that thread %u initialised (%s:%d): no "
         "fence.mbarrier_init since",
         init.thread->id, init.site.file, init.site.line);
  }
}

// The same for [target, target + bytes), which an asynchronous copy of the running thread is to
// overwrite in `block`. They are NaN then.
inline void overwrite(Block& block, char* target, size_t bytes, const char* what, Site site) {
  SharedMemory& shared = block.shared;
  check_reads(block, target, bytes, site);
  const size_t begin = shared.offset(target);
  const Thread* self = machine->current;
  if (!shared.as_left(begin, bytes) || shared.noted()) {
    for (size_t at = begin; at < begin + bytes; at += 16) {
      if (!visible(block, at, self->fenced, what, self, site)) fail(site, "%s", what);
    }
  }
  std::memset(target, 0xff, bytes);
  shared.leave(begin, bytes);
}

}  // namespace vitc::emu
