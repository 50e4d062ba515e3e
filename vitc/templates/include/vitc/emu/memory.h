// Device memory of the emulated device, and what an address means.
//
// An allocation ends at a page that cannot be touched (up to the 16 bytes its begin is aligned to),
// and another such page lies before it, so a kernel that runs out of a buffer faults instead of
// reading its neighbour. Buffers that the host allocated itself can be registered under a name;
// they are then named in the message, but only a guarded allocation makes the access fault.
//
// A guarded buffer can stand for what the kernel before reads or writes: it cannot be touched until
// a thread of the next launch has waited for that kernel.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <mutex>
#include <vector>

namespace vitc::emu {

class DeviceMemory {
 public:
  static constexpr size_t kPage = 4096, kAlignment = 16;

  // Memory filled with 0xff bytes (NaN), aligned to 16 bytes only; null when there is none.
  void* allocate(size_t bytes, const char* name = "") {
    size_t pages = (bytes + kPage - 1) / kPage * kPage;
    void* mapped = mmap(nullptr, pages + 2 * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (mapped == MAP_FAILED) return nullptr;
    char* base = static_cast<char*>(mapped);
    if (mprotect(base + kPage, pages, PROT_READ | PROT_WRITE) != 0) {
      munmap(mapped, pages + 2 * kPage);
      return nullptr;
    }
    char* begin = base + kPage + pages - (bytes + kAlignment - 1) / kAlignment * kAlignment;
    std::memset(base + kPage, 0xff, pages);
    add(begin, bytes, name, base, pages + 2 * kPage);
    return begin;
  }

  void release(void* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (size_t i = 0; i < buffers_.size(); ++i) {
      if (buffers_[i].begin != address) continue;
      if (buffers_[i].mapping != nullptr) munmap(buffers_[i].mapping, buffers_[i].mapping_bytes);
      buffers_.erase(buffers_.begin() + i);
      return;
    }
  }

  // The buffer at `address` is in use by the kernel before the next launch.
  void hold(const void* address) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Buffer& b : buffers_) b.held = b.held || (b.begin == address && b.mapping != nullptr);
  }
  // The next launch begins, or one of its threads has waited.
  void guard_held() { protect_held(PROT_NONE); }
  void let_go() { protect_held(PROT_READ | PROT_WRITE); }

  void register_buffer(void* address, size_t bytes, const char* name) {
    add(static_cast<char*>(address), bytes, name, nullptr, 0);
  }

  // Writes where `address` lies relative to the nearest known buffer, or nothing if none is within
  // a page.
  void describe(const void* address, char* text, size_t size) const {
    auto* p = static_cast<const char*>(address);
    text[0] = 0;
    for (const Buffer& b : buffers_) {  // the failing thread's host side holds no lock: read only
      const char* name = b.name[0] != 0 ? b.name : "a buffer";
      long after = p - (b.begin + b.bytes), before = b.begin - p;
      if (after >= 0 && after < long(kPage)) {
        std::snprintf(text, size, ", %ld bytes past the end of %s (%zu bytes)", after, name,
                      b.bytes);
      } else if (before > 0 && before <= long(2 * kPage)) {
        std::snprintf(text, size, ", %ld bytes before %s (%zu bytes)", before, name, b.bytes);
      } else if (after < 0 && before <= 0) {
        std::snprintf(text, size, ", byte %ld of %s (%zu bytes)%s", -before, name, b.bytes,
                      b.held ? " before wait_for_previous_kernel()" : "");
      }
    }
  }

 private:
  struct Buffer {
    char* begin;
    size_t bytes;
    char name[48];
    void* mapping;
    size_t mapping_bytes;
    bool held;
  };

  void protect_held(int protection) {
    std::lock_guard<std::mutex> lock(mutex_);
    for (Buffer& b : buffers_) {
      if (!b.held) continue;
      mprotect(static_cast<char*>(b.mapping) + kPage, b.mapping_bytes - 2 * kPage, protection);
      b.held = protection == PROT_NONE;
    }
  }

  void add(char* begin, size_t bytes, const char* name, void* mapping, size_t mapping_bytes) {
    std::lock_guard<std::mutex> lock(mutex_);
    Buffer buffer{begin, bytes, "", mapping, mapping_bytes, false};
    std::snprintf(buffer.name, sizeof buffer.name, "%s", name);
    buffers_.push_back(buffer);
  }

  std::mutex mutex_;
  std::vector<Buffer> buffers_;
};

inline __attribute__((visibility("hidden"))) DeviceMemory device_memory;

}  // namespace vitc::emu
