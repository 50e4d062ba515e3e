// cp.async: the copy lands at the wait that promises it, in the thread that issued it, and its
// target is NaN until then. So a wait that promises too little, a missing barrier after it, or a
// source that is overwritten meanwhile shows in the result.
#pragma once

#include "vitc/emu/access.h"
#include "vitc/emu/proxy.h"

namespace vitc::emu {

// Copies source_bytes and zero-fills up to bytes (4, 8 or 16).
inline void async_copy(void* target, const void* source, unsigned bytes, unsigned source_bytes,
                       Site site) {
  check_aligned("cp.async", target, bytes, site);
  check_shared("cp.async", target, bytes, site);
  // Hardware wants the source aligned even when it reads nothing of it.
  check_aligned("cp.async source", source, bytes, site);
  if (source_bytes > bytes) fail(site, "cp.async of %u bytes from %u", bytes, source_bytes);
  Thread* self = machine->current;
  check_reads(*self->block, target, bytes, site);
  std::memset(target, 0xff, bytes);
  self->copies.push_back({target, source, bytes, source_bytes, self->copy_group, site});
}

inline void async_copy_commit() { ++machine->current->copy_group; }

// All but the latest `pending` committed groups have landed.
inline void async_copy_wait(unsigned pending) {
  Thread* self = machine->current;
  size_t landed = 0;
  for (; landed < self->copies.size(); ++landed) {
    const PendingCopy& copy = self->copies[landed];
    if (copy.group + pending >= self->copy_group) break;
    std::memcpy(copy.target, copy.source, copy.source_bytes);
    std::memset(static_cast<char*>(copy.target) + copy.source_bytes, 0,
                copy.bytes - copy.source_bytes);
    note_write(*self, copy.target, copy.bytes, copy.site);
  }
  self->copies.erase(self->copies.begin(), self->copies.begin() + landed);
}

}  // namespace vitc::emu
