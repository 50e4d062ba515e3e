"""Builds that are interrupted, stopped from outside or run beside each other."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
from codegen.building import all_dead, call, fake, function, leftovers

from vitc.codegen.build import build_library, compile_objects
from vitc.codegen.cache import BuildCache
from vitc.codegen.processes import Cancelled, Runner
from vitc.codegen.sources import Source

INTERRUPTED = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where jobs run in the background
sys.path.insert(0, str(Path(sys.argv[1])))
import building
from vitc.codegen.build import Source, build_library
from vitc.codegen.cache import BuildCache
folder = Path(sys.argv[2])
body = f"echo x > half.o; sleep 600 & echo $! >> {folder}/pids; wait"
tools = building.fake(folder, body)
try:
    build_library([Source(f"k{i}", str(i)) for i in range(4)], toolchain=tools, jobs=2,
                  output=folder / "a.so", cache=BuildCache(folder / "cache"))
except KeyboardInterrupt:
    print("interrupted", flush=True)
"""


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGKILL])
def test_an_interrupted_build_leaves_nothing(tmp_path, sent, toolchain):
    child = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, str(Path(__file__).parent), str(tmp_path)],
        stdout=subprocess.PIPE,
        text=True,
    )
    pids = tmp_path / "pids"
    deadline = time.perf_counter() + 300
    while not pids.exists() or len(pids.read_text().split()) < 4:  # two compilers, a child each
        assert child.poll() is None
        assert time.perf_counter() < deadline
        time.sleep(0.02)
    child.send_signal(sent)
    out, _ = child.communicate(timeout=120)
    cache = BuildCache(tmp_path / "cache")
    if sent == signal.SIGINT:
        assert out == "interrupted\n"
        assert all_dead(pids)
        assert leftovers(cache) == []
    else:  # nobody was left to clean up: the next build does
        for pid in (int(line) for line in pids.read_text().split()):
            os.kill(pid, signal.SIGKILL)
        compile_objects([function("f")], toolchain=toolchain, cache=cache)
        assert [p.parent.name for p in leftovers(cache)] == ["objects"]
    assert not (tmp_path / "a.so").exists()


def test_another_thread_stops_a_build(cache, tmp_path):
    """As compile() does on Ctrl-C, since it builds in the background."""
    runner = Runner()
    caught: list[BaseException] = []

    def work() -> None:
        parts = [Source("a", "1"), Source("b", "2")]
        tools = fake(tmp_path, "sleep 600")
        try:
            build_library(
                parts,
                toolchain=tools,
                jobs=1,
                output=tmp_path / "a.so",
                cache=cache,
                runner=runner,
            )
        except Cancelled as error:
            caught.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    while not (tmp_path / "pids").exists():
        time.sleep(0.01)
    runner.stop()
    thread.join(300)
    assert len(caught) == 1
    assert all_dead(tmp_path / "pids")
    assert leftovers(cache) == []


def test_threads_build_the_same_thing_at_once(toolchain, cache, tmp_path):
    parts = [function(f"f{i}", i) for i in range(3)]
    errors: list[BaseException] = []

    def work(number: int) -> None:
        try:
            output = tmp_path / f"{number % 2}.so"
            build_library(parts, toolchain=toolchain, output=output, jobs=2, cache=cache)
        except BaseException as error:  # noqa: BLE001 (shown by the assertion below)
            errors.append(error)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert [call(tmp_path / f"{n}.so", "f2") for n in (0, 1)] == [2, 2]
    assert len(list(cache.objects.iterdir())) == 4
