// The thread pool behind Executor. Include it in exactly one translation unit.
//
// A ViT-B forward pass is about sixty kernels of 0.3 ms, so handing out work must cost about a
// microsecond: workers spin on an epoch counter for a short while after each kernel and only then
// sleep on a futex. An idle context burns no CPU.
#pragma once
#include <limits.h>
#include <linux/futex.h>
#include <pthread.h>
#include <sched.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#include <atomic>
#include <new>

#include "vitc/cpu/executor.h"

namespace vitc {

struct Executor::Pool {
  // Written by the caller before each run; `state` publishes it.
  TaskFn fn = nullptr;
  void* context = nullptr;
  int64_t tasks = 0;

  alignas(64) std::atomic<uint32_t> epoch{0};    // one more run to join; workers wait on it
  alignas(64) std::atomic<int64_t> next{0};      // next task to hand out
  alignas(64) std::atomic<uint32_t> working{0};  // workers that have not finished this run
  std::atomic<uint32_t> sleepers{0};
  std::atomic<bool> caller_sleeps{false};
  std::atomic<bool> stop{false};
  pthread_t* workers = nullptr;

  struct Start {
    Pool* pool;
    int thread;
  };
  Start* starts = nullptr;

  // Long enough to bridge the gaps between the kernels of one pass, short enough not to be seen as
  // CPU use. Measured in time, since a pause costs from 10 to 140 cycles depending on the CPU.
  static constexpr int64_t kSpinNanoseconds = 60 * 1000;

  static int64_t now() {
    timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return int64_t{t.tv_sec} * 1000000000 + t.tv_nsec;
  }

  static void pause() {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#endif
  }

  // True as soon as ready(), false when the time to spin is over.
  template <class Ready>
  static bool spin(const Ready& ready) {
    const int64_t start = now();
    do {
      for (int i = 0; i < 64; ++i) {
        if (ready()) return true;
        pause();
      }
    } while (now() - start < kSpinNanoseconds);
    return ready();
  }

  static void futex(std::atomic<uint32_t>& word, int op, uint32_t value) {
    syscall(SYS_futex, reinterpret_cast<uint32_t*>(&word), op | FUTEX_PRIVATE_FLAG, value, nullptr,
            nullptr, 0);
  }

  void drain(int thread) {
    for (int64_t t; (t = next.fetch_add(1, std::memory_order_relaxed)) < tasks;)
      fn(context, t, thread);
  }

  void work(int thread) {
    uint32_t seen = 0;
    for (;;) {
      auto changed = [&] { return epoch.load(std::memory_order_acquire) != seen; };
      while (!spin(changed)) {
        sleepers.fetch_add(1);
        if (!changed()) futex(epoch, FUTEX_WAIT, seen);
        sleepers.fetch_sub(1);
        if (changed()) break;
      }
      ++seen;
      if (stop.load(std::memory_order_relaxed)) return;
      drain(thread);
      if (working.fetch_sub(1) == 1 && caller_sleeps.load()) futex(working, FUTEX_WAKE, 1);
    }
  }

  void publish() {
    epoch.fetch_add(1);
    if (sleepers.load() != 0) futex(epoch, FUTEX_WAKE, INT_MAX);
  }

  void finish() {
    auto done = [&] { return working.load(std::memory_order_acquire) == 0; };
    if (spin(done)) return;
    caller_sleeps.store(true);
    for (uint32_t left; (left = working.load()) != 0;) futex(working, FUTEX_WAIT, left);
    caller_sleeps.store(false);
  }

  static void* main(void* start) {
    static_cast<Start*>(start)->pool->work(static_cast<Start*>(start)->thread);
    return nullptr;
  }
};

// CPUs that this process may run on.
inline int available_cpus() {
  cpu_set_t set;
  CPU_ZERO(&set);
  if (sched_getaffinity(0, sizeof(set), &set) == 0) return CPU_COUNT(&set);
  const long online = sysconf(_SC_NPROCESSORS_ONLN);  // more CPUs than cpu_set_t holds
  return online > 0 ? static_cast<int>(online) : 1;
}

Executor::Executor(int threads)
    : threads_(threads > 0 ? threads : available_cpus()), pool_(nullptr) {
  if (threads_ == 1) return;
  pool_ = new (std::nothrow) Pool;
  const int wanted = threads_;
  threads_ = 1;
  if (!pool_) return;
  pool_->workers = new (std::nothrow) pthread_t[wanted];
  pool_->starts = new (std::nothrow) Pool::Start[wanted];
  if (!pool_->workers || !pool_->starts) return;
  for (int t = 1; t < wanted; ++t) {
    pool_->starts[t] = {pool_, t};
    if (pthread_create(&pool_->workers[t], nullptr, Pool::main, &pool_->starts[t]) != 0) break;
    threads_ = t + 1;
  }
}

Executor::~Executor() {
  if (!pool_) return;
  pool_->stop.store(true);
  pool_->publish();
  for (int t = 1; t < threads_; ++t) pthread_join(pool_->workers[t], nullptr);
  delete[] pool_->workers;
  delete[] pool_->starts;
  delete pool_;
}

void Executor::run(int64_t tasks, TaskFn fn, void* context) {
  if (threads_ == 1 || tasks <= 1) {
    for (int64_t t = 0; t < tasks; ++t) fn(context, t, 0);
    return;
  }
  Pool& pool = *pool_;
  pool.fn = fn;
  pool.context = context;
  pool.tasks = tasks;
  pool.next.store(0, std::memory_order_relaxed);
  pool.working.store(static_cast<uint32_t>(threads_ - 1), std::memory_order_relaxed);
  pool.publish();
  pool.drain(0);
  pool.finish();
}

}  // namespace vitc
