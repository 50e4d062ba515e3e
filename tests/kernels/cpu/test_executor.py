"""The thread pool: every task once, any number of threads, asleep when idle."""

from __future__ import annotations

import os
import subprocess
import time
from pathlib import Path

import harness as h
import numpy as np
import pytest

SOURCE = """
#include "vitc/cpu/tasks.h"
#include "vitc/kernel.h"
using namespace vitc;
extern "C" int VITC_SYMBOL(count)(const Call& c) {
  int* counts = arg<int>(c, 0);
  int* threads = arg<int>(c, 1);
  parallel_for(c.exec, c.batch, [&](int64_t task, int thread) {
    __atomic_fetch_add(counts + task, 1, __ATOMIC_RELAXED);
    __atomic_fetch_add(threads + thread, 1, __ATOMIC_RELAXED);
  });
  return 0;
}
extern "C" uint64_t VITC_SYMBOL(count_scratch)(int) { return 0; }
extern "C" int VITC_SYMBOL(claim)(const Call& c) {
  int* counts = arg<int>(c, 0);
  TaskRange ranges[16];
  const int workers = c.exec->threads();
  split_tasks(ranges, c.batch, workers);
  parallel_for(c.exec, workers, [&](int64_t w, int) {
    for (int64_t t; (t = claim_task(ranges, w, workers)) >= 0;)
      __atomic_fetch_add(counts + t, 1, __ATOMIC_RELAXED);
  });
  return 0;
}
extern "C" uint64_t VITC_SYMBOL(claim_scratch)(int) { return 0; }
"""


@pytest.fixture(scope="module")
def library() -> h.KernelLibrary:
    return h.KernelLibrary(SOURCE, ["count", "claim"], "avx2")


@pytest.mark.parametrize("workers", [1, 2, 3, 8])
def test_every_task_runs_once(library: h.KernelLibrary, workers: int) -> None:
    executor = h.Executor(library, workers)
    assert executor.threads == workers
    used = np.zeros(workers, np.int32)
    for tasks in (0, 1, 2, 7, 1000):
        counts = np.zeros(max(tasks, 1), np.int32)
        executor.run("count", [counts, used], tasks, repeats=200)
        assert (counts[:tasks] == 200).all()
        executor.run("claim", [counts], tasks, repeats=100)
        assert (counts[:tasks] == 300).all()
    executor.close()


def test_default_is_the_affinity_mask(library: h.KernelLibrary) -> None:
    executor = h.Executor(library, 0)
    assert executor.threads == len(os.sched_getaffinity(0))
    executor.close()


def test_idle_pool_sleeps(library: h.KernelLibrary) -> None:
    """After a run the workers spin for microseconds, not for as long as the context lives."""
    executor = h.Executor(library, 4)
    executor.run("count", [np.zeros(100, np.int32), np.zeros(4, np.int32)], 100)
    time.sleep(0.05)
    before = time.process_time()
    time.sleep(0.3)
    assert time.process_time() - before < 0.02
    executor.close()


def test_no_symbol_is_shared_between_isas(isa: str) -> None:
    """A weak function in both objects would run one ISA's code on behalf of the other."""
    includes = "".join(
        f'#include "vitc/cpu/{p.name}"\n'
        for p in sorted((h.INCLUDE / "vitc" / "cpu").glob("*.h"))
        if p.name != "threads.h"
    )
    library = h.KernelLibrary(includes + SOURCE, ["count", "claim"], isa)
    lines = subprocess.run(
        ["nm", "-C", "--defined-only", str(Path(library.object_path))],
        capture_output=True,
        text=True,
        check=True,
    ).stdout.splitlines()
    weak = [line for line in lines if line.split()[1] in "WVu" and f"vitc::{isa}::" not in line]
    assert not weak
