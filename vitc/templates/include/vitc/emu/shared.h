// The shared memory of the running block. It starts as NaN (all bits one) in every block; the pages
// on both sides cannot be touched, so an access past its end, or far before its begin, is a fault
// that fault.h turns into an error. The slack between the lower page and the begin is checked for
// writes.
#pragma once

#include <sys/mman.h>

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <memory>
#include <vector>

#include "vitc/emu/site.h"

namespace vitc::emu {

struct Thread;

class SharedMemory {
 public:
  static constexpr size_t kLimit = 256 << 10;  // no device has more
  static constexpr size_t kPage = 4096;
  static constexpr size_t kAlignment = 1024;     // what a 128-byte-swizzled TMA tile asks for
  static constexpr unsigned kMaxVariables = 64;  // __shared__ variables of one kernel

  // By an ordinary instruction, to 16 bytes: where and by which thread (site.line 0: none known),
  // how many proxy fences there had been (proxy.h).
  struct Write {
    Site site;
    uint32_t fences = 0;
    const Thread* thread = nullptr;
  };

  bool reserve() {
    if (left_ == nullptr) left_.reset(new char[kLimit]);
    return dynamic_.reserve() && static_.reserve();
  }

  // A new block: `bytes` of dynamic shared memory, no static variable yet.
  void begin_block(size_t bytes) {
    dynamic_.resize(bytes);
    static_.resize(kLimit / 4);
    variables_ = 0;
    static_used_ = 0;
    std::memset(left_.get(), 0xff, (bytes + 15) / 16 * 16);
    writes_.clear();
  }

  char* dynamic() const { return dynamic_.begin(); }
  size_t dynamic_bytes() const { return dynamic_.bytes(); }

  // The static variable that `key` identifies; every thread of a block gets the same one. Null when
  // static shared memory (64 KiB here) is used up. 16 bytes of NaN separate variables.
  void* variable(const void* key, size_t bytes, size_t alignment) {
    for (unsigned i = 0; i < variables_; ++i) {
      if (variable_[i].key == key) return static_.begin() + variable_[i].offset;
    }
    size_t offset = (static_used_ + alignment - 1) / alignment * alignment;
    if (variables_ == kMaxVariables || offset + bytes > static_.bytes()) return nullptr;
    variable_[variables_++] = {key, offset, bytes};
    static_used_ = offset + bytes + 16;
    return static_.begin() + offset;
  }

  // Whether [address, address + bytes) lies in the dynamic memory or inside one static variable.
  bool holds(const void* address, size_t bytes) const {
    auto* p = static_cast<const char*>(address);
    if (p >= dynamic_.begin() && p + bytes <= dynamic_.begin() + dynamic_.bytes()) return true;
    for (unsigned i = 0; i < variables_; ++i) {
      const char* begin = static_.begin() + variable_[i].offset;
      if (p >= begin && p + bytes <= begin + variable_[i].bytes) return true;
    }
    return false;
  }

  // ---- offsets in the dynamic memory
  bool in_dynamic(const void* address) const {
    return address >= dynamic_.begin() && address < dynamic_.begin() + dynamic_.bytes();
  }
  size_t offset(const void* address) const {
    return size_t(static_cast<const char*>(address) - dynamic_.begin());
  }
  bool noted() const { return !writes_.empty(); }
  void note(size_t offset, Write write) {
    if (writes_.empty()) writes_.resize((dynamic_.bytes() + 15) / 16);
    writes_[offset / 16] = write;
  }
  Write last_write(size_t offset) const { return writes_.empty() ? Write{} : writes_[offset / 16]; }
  // Whether bytes without a known writer are what the last leave() of them found, or NaN.
  bool as_left(size_t offset, size_t bytes) const {
    return std::memcmp(dynamic_.begin() + offset, left_.get() + offset, bytes) == 0;
  }
  // An asynchronous operation has written these bytes.
  void leave(size_t offset, size_t bytes) {
    std::memcpy(left_.get() + offset, dynamic_.begin() + offset, bytes);
    if (noted()) std::fill_n(writes_.begin() + long(offset / 16), (bytes + 15) / 16, Write{});
  }

  // Bytes from the end of the dynamic memory to `address` if it is near it (a guard page hit), else
  // -1.
  long past_end(const void* address) const {
    long distance = static_cast<const char*>(address) - (dynamic_.begin() + dynamic_.bytes());
    return distance >= 0 && distance < long(kPage) ? distance : -1;
  }
  bool near(const void* address) const { return dynamic_.maps(address) || static_.maps(address); }

  // True if a thread wrote below the begin of the dynamic memory.
  bool slack_written() const { return dynamic_.slack_written(); }

 private:
  // Pages with an unreadable page at each end; its contents end exactly at the upper one when the
  // size is a multiple of kAlignment, else up to the next multiple of 16 bytes before it.
  class Pages {
   public:
    bool reserve() {
      if (base_ != nullptr) return true;
      void* mapped = mmap(nullptr, kLimit + 2 * kPage, PROT_NONE,
                          MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
      if (mapped == MAP_FAILED) return false;
      base_ = static_cast<char*>(mapped);
      return mprotect(base_ + kPage, kLimit, PROT_READ | PROT_WRITE) == 0;
    }
    void resize(size_t bytes) {
      bytes_ = bytes;
      size_t rounded = (bytes + kAlignment - 1) / kAlignment * kAlignment;
      // The begin keeps kAlignment; a size that is no multiple of it leaves NaN after the end.
      begin_ = base_ + kPage + kLimit - rounded;
      size_t slack = begin_ - (base_ + kPage);
      slack_ = slack < kPage ? slack : kPage;
      std::memset(begin_ - slack_, 0xff, slack_ + rounded);
    }
    char* begin() const { return begin_; }
    size_t bytes() const { return bytes_; }
    bool maps(const void* address) const {
      auto* p = static_cast<const char*>(address);
      return base_ != nullptr && p >= base_ && p < base_ + kLimit + 2 * kPage;
    }
    bool slack_written() const {
      for (size_t i = 1; i <= slack_; ++i) {
        if (begin_[-long(i)] != char(0xff)) return true;
      }
      size_t rounded = (bytes_ + kAlignment - 1) / kAlignment * kAlignment;
      for (size_t i = bytes_; i < rounded; ++i) {
        if (begin_[i] != char(0xff)) return true;
      }
      return false;
    }

   private:
    char *base_ = nullptr, *begin_ = nullptr;
    size_t bytes_ = 0, slack_ = 0;
  };

  struct Variable {
    const void* key;
    size_t offset, bytes;
  };

  Pages dynamic_, static_;
  std::unique_ptr<char[]> left_;  // the dynamic memory as asynchronous operations left it
  std::vector<Write> writes_;     // of each 16 bytes; empty until there is one
  Variable variable_[kMaxVariables];
  unsigned variables_ = 0;
  size_t static_used_ = 0;
};

}  // namespace vitc::emu
