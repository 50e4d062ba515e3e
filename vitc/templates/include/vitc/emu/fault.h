// Turns a bad memory access or an integer division by zero of a running fibre into a failed launch.
// The handlers are installed for the time of a launch only, and signals that are not the running
// fibre's own go to the handler that was there before: launches of several libraries, each with a
// handler of its own, may overlap and end in any order.
#pragma once

#include <dlfcn.h>
#include <pthread.h>
#include <signal.h>
#include <ucontext.h>

#include <cstdio>
#include <cstring>

#include "vitc/emu/machine.h"
#include "vitc/emu/memory.h"

namespace vitc::emu {

class FaultGuard {
 public:
  FaultGuard() {
    active = this;
    owner_ = pthread_self();
    stack_t stack{};
    stack.ss_sp = signal_stack_;
    stack.ss_size = sizeof signal_stack_;
    sigaltstack(&stack, &old_stack_);
    struct sigaction action{};
    action.sa_sigaction = handle;
    action.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER;
    for (int i = 0; i < kSignals; ++i) {
      if (!is_installed(kSignal[i])) sigaction(kSignal[i], &action, &before[i]);
    }
  }
  ~FaultGuard() {
    // What another library's launch installed since stays: it has this handler for its own before.
    for (int i = 0; i < kSignals; ++i) {
      if (is_installed(kSignal[i])) sigaction(kSignal[i], &before[i], nullptr);
    }
    sigaltstack(&old_stack_, nullptr);
    active = nullptr;
  }
  FaultGuard(const FaultGuard&) = delete;
  FaultGuard& operator=(const FaultGuard&) = delete;

 private:
  static constexpr int kSignals = 3;
  static constexpr int kSignal[kSignals] = {SIGSEGV, SIGBUS, SIGFPE};

  // Runs on the signal stack: leaves the signal by resuming at report(), on a stack that is intact
  // even if the fibre's own was exhausted.
  static void handle(int number, siginfo_t* info, void* context) {
    FaultGuard* self = active;
    if (self == nullptr || !pthread_equal(self->owner_, pthread_self()) ||
        machine->current == nullptr) {
      pass_on(number, info, context);
      return;
    }
    self->signal_ = number;
    self->address_ = info->si_addr;
    auto* state = static_cast<ucontext_t*>(context);
    uintptr_t top = reinterpret_cast<uintptr_t>(self->report_stack_ + sizeof self->report_stack_);
    machine->fault_code = reinterpret_cast<void*>(state->uc_mcontext.gregs[REG_RIP]);
    state->uc_mcontext.gregs[REG_RIP] = greg_t(reinterpret_cast<uintptr_t>(&report));
    state->uc_mcontext.gregs[REG_RSP] = greg_t((top & ~uintptr_t(15)) - 8);
  }

  // To the handler that was there before: it is called if it takes what this one does, as other
  // libraries' do, else the access repeats and meets it. The default, where they call in a circle.
  static void pass_on(int number, siginfo_t* info, void* context) {
    static thread_local bool passing = false;
    struct sigaction next{};
    for (int i = 0; i < kSignals; ++i) {
      if (kSignal[i] == number && !passing) next = before[i];
    }
    if ((next.sa_flags & SA_SIGINFO) == 0) {
      sigaction(number, &next, nullptr);
      return;
    }
    passing = true;
    next.sa_sigaction(number, info, context);
    passing = false;
  }

  static bool is_installed(int number) {
    struct sigaction now{};
    sigaction(number, nullptr, &now);
    return (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == handle;
  }

  static void report() {
    FaultGuard* self = active;
    const Thread* thread = machine->current;
    const char* after = thread->operation;
    if (self->signal_ == SIGFPE) fail(Site{}, "integer division by zero after its last %s", after);
    if (machine->stacks.holds(self->address_)) {
      fail(Site{}, "stack overflow (%zu bytes a thread) after its last %s", FibreStacks::kBytes,
           after);
    }
    long past = machine->here->shared.past_end(self->address_);
    if (past >= 0) {
      fail(Site{},
           "out-of-bounds shared access, %ld bytes past the end (%zu bytes), after its last %s",
           past, machine->here->shared.dynamic_bytes(), after);
    }
    if (machine->here->shared.near(self->address_)) {
      fail(Site{}, "out-of-bounds shared access at offset %ld, after its last %s",
           static_cast<char*>(self->address_) - machine->here->shared.dynamic(), after);
    }
    char place[160];
    device_memory.describe(self->address_, place, sizeof place);
    fail(Site{}, "illegal memory access at %p%s, after its last %s", self->address_, place, after);
  }

  inline static VITC_EMU_PRIVATE FaultGuard* active = nullptr;
  // What the handlers replaced; kept beyond a launch, after which another library's may bring them
  // back.
  inline static VITC_EMU_PRIVATE struct sigaction before[kSignals]{};

  pthread_t owner_;
  stack_t old_stack_{};
  int signal_ = 0;
  void* address_ = nullptr;
  alignas(16) char signal_stack_[64 << 10];
  alignas(16) char report_stack_[64 << 10];
};

// Appends the source line of the faulting instruction to the message. The debug information knows
// it (build with -g1), and binutils' addr2line, which every compiler installation has, reads that;
// without either the message ends in the instruction's offset in the library.
inline void append_fault_line() {
  Machine& m = *machine;
  Dl_info info;
  if (m.fault_code == nullptr || dladdr(m.fault_code, &info) == 0 || info.dli_fname == nullptr)
    return;
  size_t offset = static_cast<const char*>(m.fault_code) - static_cast<const char*>(info.dli_fbase);
  char command[640], line[256] = "";
  std::snprintf(command, sizeof command, "addr2line -e '%s' 0x%zx 2>/dev/null", info.dli_fname,
                offset);
  if (FILE* pipe = popen(command, "r")) {
    if (std::fgets(line, sizeof line, pipe) != nullptr) line[std::strcspn(line, "\n")] = 0;
    pclose(pipe);
  }
  size_t used = std::strlen(m.message);
  if (line[0] != 0 && line[0] != '?') {
    std::snprintf(m.message + used, sizeof m.message - used, " (%s)", line);
  } else {
    std::snprintf(m.message + used, sizeof m.message - used, " (%s+0x%zx)", info.dli_fname, offset);
  }
}

}  // namespace vitc::emu
