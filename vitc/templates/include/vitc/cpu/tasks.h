// How the workers of a kernel share its tasks: each owns a contiguous range, so that it meets the
// same block (copied rows, packed head) again and again, and takes over tasks of others when its
// own are done, so that unequal or disturbed cores still finish together.
#pragma once
#include "vitc/cpu/executor.h"
#include "vitc/cpu/simd.h"

namespace vitc {
inline namespace VITC_ISA {

// A worker's range of tasks, alone in its cache line.
struct alignas(64) TaskRange {
  int64_t next, end;
};

VITC_INLINE void split_tasks(TaskRange* ranges, int64_t tasks, int workers) {
  for (int w = 0; w < workers; ++w) ranges[w] = {tasks * w / workers, tasks * (w + 1) / workers};
}

// The worker's own next task, or one of another worker's; -1 when none is left.
VITC_INLINE int64_t claim_task(TaskRange* ranges, int64_t worker, int workers) {
  for (int i = 0; i < workers; ++i) {
    TaskRange& range = ranges[worker + i < workers ? worker + i : worker + i - workers];
    if (__atomic_load_n(&range.next, __ATOMIC_RELAXED) >= range.end) continue;
    const int64_t task = __atomic_fetch_add(&range.next, 1, __ATOMIC_RELAXED);
    if (task < range.end) return task;
  }
  return -1;
}

// body(begin, end, worker) over disjoint pieces of [0, count), about `grain` elements each or more.
template <class Body>
VITC_INLINE void for_ranges(Executor* exec, int64_t count, int64_t grain, const Body& body) {
  const int64_t pieces = max_of<int64_t>(1, min_of<int64_t>(count / grain, 4 * exec->threads()));
  parallel_for(exec, pieces, [&](int64_t i, int thread) {
    body(count * i / pieces, count * (i + 1) / pieces, thread);
  });
}

}  // namespace VITC_ISA
}  // namespace vitc
