// Where in the kernel's text something happened. Used as a defaulted last argument, it names the
// caller.
#pragma once

namespace vitc::emu {

struct Site {
  const char* file = "";
  int line = 0;

  static constexpr Site here(const char* file = __builtin_FILE(), int line = __builtin_LINE()) {
    return Site{file, line};
  }
  bool operator==(const Site& other) const { return line == other.line && file == other.file; }
  bool operator!=(const Site& other) const { return !(*this == other); }
};

}  // namespace vitc::emu
