// Clusters: blocks that run together, meet at a barrier and reach into each other's shared memory.
#pragma once

#include "vitc/emu/access.h"

namespace vitc::emu {

inline long shared_offset(const void* address) {
  for (const auto& block : machine->blocks) {
    if (block->shared.holds(address, 1)) {
      return static_cast<const char*>(address) - block->shared.dynamic();
    }
  }
  return -1;
}

// Where `local` lies in the block of that rank: mapa. That block must have begun, which the
// cluster's barrier tells, and still run.
template <class T>
T* remote(T* local, unsigned rank, Site site) {
  Machine& m = *machine;
  check_shared("mapa", local, sizeof(T), site);
  if (rank >= m.cluster) fail(site, "block %u of a cluster of %u", rank, m.cluster);
  Block& block = *m.blocks[rank];
  if (!m.met && &block != m.here) {
    fail(site, "block %u of the cluster may not have begun: no cluster barrier so far", rank);
  }
  if (block.running == 0) fail(site, "block %u of the cluster has exited", rank);
  long offset = reinterpret_cast<const char*>(local) - m.here->shared.dynamic();
  return reinterpret_cast<T*>(reinterpret_cast<uintptr_t>(block.shared.dynamic()) + offset);
}

inline void sync_cluster(Site site) { stop(State::at_cluster, "cluster barrier", nullptr, site); }

}  // namespace vitc::emu
