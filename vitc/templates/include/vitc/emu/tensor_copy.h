// Tensor copies, global to shared memory (cp.async.bulk.tensor, tiled mode). The target is NaN from
// the issue on; the bytes land when a thread waits for their mbarrier and nothing else can run, the
// oldest copy first, or the newest first in the reverse schedule. Elements outside the tensor are
// zeros. Swizzled, a chunk of 16 bytes at shared address a lies where bits 4 to 6 of a are replaced
// by their xor with bits 7 to 9 (as many of them as the span has chunks).
#pragma once

#include "vitc/emu/mbarrier.h"
#include "vitc/emu/proxy.h"

namespace vitc::emu {

constexpr uint32_t kSharedBase = 1024;  // of dynamic memory: the system has what is below

inline uint32_t swizzled(uint32_t address, uint32_t span) {
  return address ^ ((address >> 7 & (span / 16 - 1)) << 4);
}

// Calls visit(place in the box's dense layout, source or null, bytes) for each 16 bytes of the box.
template <class Visit>
void visit_box(const PendingTensorCopy& copy, const Visit& visit) {
  const TensorMap& map = copy.map;
  unsigned row_bytes = map.box[0] * map.element_bytes;
  unsigned rows = map.box_bytes() / row_bytes;
  for (unsigned row = 0; row < rows; ++row) {
    unsigned rest = row;
    const char* from = map.data;
    bool inside = true;
    for (unsigned i = 1; i < map.rank; ++i) {
      int64_t at = int64_t(copy.first[i]) + rest % map.box[i];
      rest /= map.box[i];
      inside = inside && at >= 0 && at <= int64_t(map.last[i]);
      from += at * int64_t(map.pitch[i - 1]);
    }
    for (unsigned byte = 0; byte < row_bytes; byte += map.element_bytes) {
      int64_t at = int64_t(copy.first[0]) + byte / map.element_bytes;
      bool there = inside && at >= 0 && at <= int64_t(map.last[0]);
      visit(row * row_bytes + byte, there ? from + at * map.element_bytes : nullptr);
    }
  }
}

inline bool land(const PendingTensorCopy& copy) {
  Machine& m = *machine;
  Block* block = nullptr;
  for (const auto& candidate : m.blocks) {
    if (candidate->shared.holds(copy.target, 1)) block = candidate.get();
  }
  char* memory = block->shared.dynamic();
  uint32_t start = kSharedBase + uint32_t(copy.target - memory);
  visit_box(copy, [&](unsigned place, const char* from) {
    char* to = memory + (swizzled(start + place, copy.map.span) - kSharedBase);
    if (from != nullptr) {
      std::memcpy(to, from, copy.map.element_bytes);
    } else {
      std::memset(to, 0, copy.map.element_bytes);
    }
  });
  block->shared.leave(block->shared.offset(copy.target), copy.map.box_bytes());
  ++m.statistics.tensor_copies;
  if (mbarrier_complete(copy.barrier, copy.map.box_bytes())) return true;
  fail_block(
      block->threads, copy.site,
      "a tensor copy of %u bytes lands at no initialised mbarrier, or at one that cannot count "
      "them",
      copy.map.box_bytes());
  return false;
}

// Touches the tensor's ends, so that one that does not lie in device memory faults at the issue.
inline void check_source(const PendingTensorCopy& copy) {
  visit_box(copy, [](unsigned, const char* from) {
    if (from != nullptr) (void)*static_cast<const volatile char*>(from);
  });
}

// To the place of `target` in every block of the cluster whose bit is set in `blocks`.
inline void tensor_copy(void* target, const TensorMap* map, const int32_t* first, unsigned rank,
                        uint64_t* barrier, unsigned blocks, Site site) {
  Machine& m = *machine;
  if (map->encoded != TensorMap::kEncoded || map->rank != rank) {
    fail(site, "tensor copy of rank %u through no tensor map, or one of another rank", rank);
  }
  check_aligned("tensor copy", target, 128, site);
  check_shared("tensor copy", target, map->box_bytes(), site);
  check_barrier(barrier, site);
  PendingTensorCopy copy{*map, {}, nullptr, nullptr, site};
  for (unsigned i = 0; i < rank; ++i) copy.first[i] = first[i];
  check_source(copy);
  if (blocks == 0 || blocks >> m.cluster != 0) {
    fail(site, "tensor copy to blocks 0x%x of a cluster of %u", blocks, m.cluster);
  }
  for (unsigned rank_to = 0; rank_to < m.cluster; ++rank_to) {
    if ((blocks >> rank_to & 1) == 0) continue;
    copy.target = remote(static_cast<char*>(target), rank_to, site);
    copy.barrier = remote(barrier, rank_to, site);
    check_init(copy.barrier, site);
    overwrite(*m.blocks[rank_to], copy.target, map->box_bytes(), "tensor copy", site);
    m.tensor_copies.push_back(copy);
  }
}

// `bytes` bytes in a row (cp.async.bulk), likewise late: a tensor of one row of 16-byte elements.
inline void bulk_copy(void* target, const void* source, int bytes, uint64_t* barrier, Site site) {
  check_aligned("bulk copy", target, 16, site);
  check_aligned("bulk copy's source", source, 16, site);
  if (bytes <= 0 || bytes % 16 != 0) fail(site, "bulk copy of %d bytes", bytes);
  check_shared("bulk copy", target, size_t(bytes), site);
  check_barrier(barrier, site);
  TensorMap row{};
  row.encoded = TensorMap::kEncoded;
  row.rank = 1, row.element_bytes = 16, row.span = 16;
  row.data = static_cast<const char*>(source);
  row.last[0] = uint32_t(bytes) / 16 - 1;
  row.box[0] = uint16_t(bytes / 16);
  PendingTensorCopy copy{row, {}, static_cast<char*>(target), barrier, site};
  check_source(copy);
  check_init(barrier, site);
  overwrite(*machine->here, copy.target, size_t(bytes), "bulk copy", site);
  machine->tensor_copies.push_back(copy);
}

// Lands what waiting threads wait for; false on failure. *progress: something landed.
inline bool land_awaited(bool* progress) {
  Machine& m = *machine;
  for (Thread& t : m.threads) {
    if (t.state != State::at_phase) continue;
    while (!phase_done(t)) {
      size_t count = m.tensor_copies.size(), found = count;
      for (size_t i = 0; i < count && found == count; ++i) {
        size_t at = m.schedule.newest_first() ? count - 1 - i : i;
        if (m.tensor_copies[at].barrier == t.phase_barrier) found = at;
      }
      if (found == count) break;
      PendingTensorCopy copy = m.tensor_copies[found];
      m.tensor_copies.erase(m.tensor_copies.begin() + long(found));
      if (!land(copy)) return false;
      *progress = true;
    }
  }
  return true;
}

}  // namespace vitc::emu
