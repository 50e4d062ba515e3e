// Tensor stores, shared to global memory (cp.async.bulk.tensor, tiled mode, bulk groups). One reads
// its source at any moment from its issue until its thread has waited for its group, which that
// thread does as late as possible: when nothing else can run. So the source must not change
// meanwhile, nor be what the async proxy does not see at the issue. What is written is there at
// once in the reverse schedule and when the grid has ended in the forward one, the newest store
// first: the wait for reads promises nothing of it. Elements outside the tensor are not written.
#pragma once

#include "vitc/emu/tensor_copy.h"

namespace vitc::emu {

inline void write_tensor(const PendingStore& store) {
  const unsigned span = store.map.span;
  visit_box(store.map, store.first, [&](unsigned place, const char* to) {
    if (to == nullptr) return;
    const uint32_t from = swizzled(store.address + place, span) - store.address;
    std::memcpy(const_cast<char*>(to), store.bytes.data() + from, store.map.element_bytes);
  });
}

// Ends the launch if the async proxy does not see what is to be stored.
inline void check_visible(const PendingStore& store) {
  const Thread& self = *machine->current;
  uint32_t checked = 0;
  visit_box(store.map, store.first, [&](unsigned place, const char* to) {
    const uint32_t chunk = swizzled(store.address + place, store.map.span) / 16 * 16;
    if (to == nullptr || chunk == checked) return;
    checked = chunk;
    const char* what = "tensor store's source";
    if (!visible(*self.block, chunk - kSharedBase, self.fenced, what, &self, store.site)) {
      fail(store.site, "%s", what);
    }
  });
}

inline void tensor_store(const TensorMap* map, const int32_t* first, unsigned rank,
                         const void* source, Site site) {
  Machine& m = *machine;
  const SharedMemory& shared = m.here->shared;
  check_map("tensor store", map, rank, site);
  check_aligned("tensor store", source, 128, site);
  check_shared("tensor store", source, map->box_bytes(), site);
  note_write(*m.current, map->data, 0, site);
  const auto* begin = static_cast<const char*>(source);
  const uint32_t address = kSharedBase + uint32_t(begin - shared.dynamic());
  PendingStore store{*map, {}, m.current, begin, address, m.current->store_group, site, {}};
  for (unsigned i = 0; i < rank; ++i) store.first[i] = first[i];
  check_tensor(store.map, store.first);
  check_visible(store);
  store.bytes.assign(begin, begin + map->box_bytes());
  if (m.schedule.stores_at_once(++m.turns)) {
    write_tensor(store);
  } else {
    m.unwritten.push_back(store);
  }
  m.stores.push_back(std::move(store));
}

inline void stores_commit() { ++machine->current->store_group; }

// Whether the store is the thread's and not of its `left` latest groups.
inline bool awaited(const PendingStore& store, const Thread& thread, unsigned left) {
  return store.thread == &thread && store.group + left < thread.store_group;
}

// All but the latest `left` committed groups have been read.
inline void stores_wait_read(unsigned left, Site site) {
  Thread& self = *machine->current;
  ++self.waits;
  self.stores_left = left;
  for (const PendingStore& store : machine->stores) {
    if (!awaited(store, self, left)) continue;
    stop(State::at_stores, "stores wait", nullptr, site);
    return;
  }
}

// Does the reads that threads wait for; false on failure.
inline bool read_awaited(bool* progress) {
  Machine& m = *machine;
  for (Thread& t : m.threads) {
    if (t.state != State::at_stores) continue;
    for (size_t i = 0; i < m.stores.size();) {
      const PendingStore& store = m.stores[i];
      if (!awaited(store, t, t.stores_left)) {
        ++i;
        continue;
      }
      if (std::memcmp(store.source, store.bytes.data(), store.bytes.size()) != 0) {
        fail_block(&t, store.site,
                   "tensor store's source at shared offset %u was overwritten before the wait",
                   store.address - kSharedBase);
        return false;
      }
      m.stores.erase(m.stores.begin() + long(i));
    }
    t.state = State::ready;
    *progress = true;
  }
  return true;
}

// Ends the launch if the thread that exits has not waited for a store: shared memory goes with the
// block.
inline void check_stores_read() {
  for (const PendingStore& store : machine->stores) {
    if (store.thread != machine->current) continue;
    fail(store.site, "exit with a tensor store not %s",
         store.group == store.thread->store_group ? "committed" : "waited for");
  }
}

// The grid has ended.
inline void write_late() {
  auto& late = machine->unwritten;
  for (auto store = late.rbegin(); store != late.rend(); ++store) write_tensor(*store);
  late.clear();
}

}  // namespace vitc::emu
