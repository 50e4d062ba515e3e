// Checks of addresses that pass through a named device function: vector loads and stores, ldmatrix,
// cp.async. Plain C++ accesses are covered by unreadable pages alone (shared.h, memory.h).
#pragma once

#include <cstdint>
#include <cstring>

#include "vitc/emu/machine.h"

namespace vitc::emu {

inline void check_aligned(const char* what, const void* address, size_t bytes, Site site) {
  if (reinterpret_cast<uintptr_t>(address) % bytes != 0) {
    fail(site, "%s of %zu bytes at the misaligned address %p", what, bytes, address);
  }
}

inline void check_shared(const char* what, const void* address, size_t bytes, Site site) {
  SharedMemory& shared = machine->here->shared;
  if (shared.holds(address, bytes)) return;
  long begin = static_cast<const char*>(address) - shared.dynamic();
  fail(site, "%s of %zu bytes outside shared memory: offset %ld of %zu bytes", what, bytes, begin,
       shared.dynamic_bytes());
}

// A vector access. In shared memory it must stay inside; elsewhere the pages guard it.
inline void check_vector(const char* what, const void* address, size_t bytes, Site site) {
  check_aligned(what, address, bytes, site);
  if (machine->here->shared.near(address)) check_shared(what, address, bytes, site);
}

// The shared variable that `key` stands for in the running block (see VITC_SHARED in device.h).
template <class T>
T& shared_variable(const void* key, Site site) {
  void* address = machine->here->shared.variable(key, sizeof(T), alignof(T) < 16 ? 16 : alignof(T));
  if (address == nullptr) fail(site, "more than 64 KiB, or 64 variables, of static shared memory");
  return *static_cast<T*>(address);
}

}  // namespace vitc::emu
