// Failures inside the library are C++ exceptions; at the C ABI they become a status and a text.
#pragma once
#include <cinttypes>
#include <cstdarg>
#include <cstdio>
#include <exception>
#include <new>

#include "vitc/vitc.h"

namespace vitc::host {

// Fixed storage: reporting that memory ran out must not need memory.
struct Failure final : std::exception {
  static constexpr int kTextBytes = 1024;

  vitc_status status;
  char text[kTextBytes];

  const char* what() const noexcept override { return text; }
};

[[noreturn, gnu::format(printf, 2, 3)]] inline void fail(vitc_status status, const char* format,
                                                         ...) {
  Failure failure;
  failure.status = status;
  va_list args;
  va_start(args, format);
  std::vsnprintf(failure.text, sizeof failure.text, format, args);
  va_end(args);
  throw failure;
}

// Holds a failure's text behind the name of the function. Trivially destructible, so that the
// thread may outlive a dlclose of the library.
inline thread_local char last_error[Failure::kTextBytes + 64] = "";

// Runs the body of an ABI function. Nothing that it throws passes.
template <class Body>
vitc_status guarded(const char* function, const Body& body) noexcept {
  const auto report = [function](vitc_status status, const char* text) {
    std::snprintf(last_error, sizeof last_error, "%s: %s", function, text);
    return status;
  };
  try {
    body();
    return VITC_OK;
  } catch (const Failure& failure) {
    return report(failure.status, failure.text);
  } catch (const std::bad_alloc&) {
    return report(VITC_OUT_OF_MEMORY, "out of host memory");
  } catch (const std::exception& error) {
    return report(VITC_INTERNAL, error.what());
  } catch (...) {
    return report(VITC_INTERNAL, "unknown exception");
  }
}

template <class Pointer>
void require_pointer(Pointer* pointer, const char* name) {
  if (pointer == nullptr) fail(VITC_INVALID_ARGUMENT, "%s is NULL", name);
}

}  // namespace vitc::host
