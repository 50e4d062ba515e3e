// What a kernel sees of the thread pool. The implementation is threads.h, which exactly one
// translation unit (the host code, built for baseline x86-64) includes: kernels are compiled once
// per ISA, so they may only hold calls to it, never inline copies of it.
#pragma once
#include <stdint.h>

namespace vitc {

class Executor {
 public:
  using TaskFn = void (*)(void* context, int64_t task, int thread);

  // threads <= 0: one per CPU in this process's affinity mask. Never fails: when the system refuses
  // a thread, the pool is smaller.
  explicit Executor(int threads);
  ~Executor();
  Executor(const Executor&) = delete;
  Executor& operator=(const Executor&) = delete;

  int threads() const { return threads_; }

  // Calls fn(context, task, thread) once for each task in [0, tasks), thread in [0, threads()), and
  // returns when all are done. The caller is thread 0. Tasks are handed out in order, dynamically.
  void run(int64_t tasks, TaskFn fn, void* context);

 private:
  struct Pool;
  int threads_;
  Pool* pool_;
};

// body(task, thread), as Executor::run.
template <class Body>
[[gnu::always_inline]] inline void parallel_for(Executor* exec, int64_t tasks, const Body& body) {
  exec->run(
      tasks,
      [](void* context, int64_t task, int thread) {
        (*static_cast<const Body*>(context))(task, thread);
      },
      const_cast<Body*>(&body));
}

}  // namespace vitc
