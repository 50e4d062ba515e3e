// Tensor stores, shared to global memory (cp.async.bulk.tensor, tiled mode, bulk groups).
#pragma once

#include "vitc/emu/tensor_copy.h"

namespace vitc::emu {

inline void tensor_store(const TensorMap* map, const int32_t* first, unsigned rank,
                         const void* source, Site site) {
  if (map->encoded != TensorMap::kEncoded || map->rank != rank) {
    fail(site, "tensor store of rank %u through no tensor map, or one of another rank", rank);
  }
  check_aligned("tensor store", source, 128, site);
  check_shared("tensor store", source, map->box_bytes(), site);
  PendingTensorCopy box{*map, {}, nullptr, nullptr, site};
  for (unsigned i = 0; i < rank; ++i) box.first[i] = first[i];
  const char* memory = machine->here->shared.dynamic();
  const uint32_t start = kSharedBase + uint32_t(static_cast<const char*>(source) - memory);
  visit_box(box, [&](unsigned place, const char* to) {
    if (to == nullptr) return;
    std::memcpy(const_cast<char*>(to), memory + (swizzled(start + place, map->span) - kSharedBase),
                map->element_bytes);
  });
}

}  // namespace vitc::emu
