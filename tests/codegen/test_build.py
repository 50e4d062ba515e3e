"""Compiling and linking through the cache, and what stays behind when that fails."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from vitc.codegen import build, sources
from vitc.codegen.build import build_library, compile_objects, first_errors
from vitc.codegen.cache import BuildCache
from vitc.codegen.processes import Cancelled, Runner
from vitc.codegen.sources import Source, headers_digest, object_key
from vitc.codegen.toolchain import Compiler, Toolchain, find_compiler, find_toolchain
from vitc.errors import CompileError, StorageError

VISIBLE = 'extern "C" __attribute__((visibility("default")))'


@pytest.fixture(scope="module")
def toolchain() -> Toolchain:
    return find_toolchain()


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


def function(name: str, value: int = 1, *, flags: tuple[str, ...] = ("-O1",)) -> Source:
    return Source(name, f"{VISIBLE} int {name}() {{ return {value}; }}\n", flags)


def call(library: Path, name: str) -> int:
    return getattr(ctypes.CDLL(str(library)), name)()


def fake(folder: Path, body: str) -> Toolchain:
    """A toolchain whose compiler is a shell script; it writes its process id to `pids` first."""
    path = folder / "fake-g++"
    path.write_text(f"#!/bin/sh\necho $$ >> {folder / 'pids'}\n{body}\n")
    path.chmod(0o755)
    stat = path.stat()
    compiler = Compiler(
        "c++", "gcc", (str(path),), (12,), "fake 12", path, stat.st_size, stat.st_mtime_ns
    )
    return Toolchain(compiler)


def leftovers(cache: BuildCache) -> list[Path]:
    """What should not be there after any build."""
    return [*cache.objects.glob("*"), *(cache.root / "work").glob("*")]


def test_a_library_works_and_the_second_time_comes_from_the_cache(toolchain, cache, tmp_path):
    parts = [function(f"f{i}", i) for i in range(4)]
    seen: list[tuple[str, int, int]] = []
    first = build_library(
        parts,
        toolchain=toolchain,
        output=tmp_path / "new" / "a.so",
        jobs=2,
        cache=cache,
        progress=lambda *step: seen.append(step),
    )
    assert call(first.output, "f3") == 3
    assert [item.name for item in first.objects] == ["f0", "f1", "f2", "f3"]
    assert first.hits == 0
    assert not first.link.hit
    assert [step[1:] for step in seen] == [(i, 5) for i in range(1, 6)]
    assert seen[-1][0] == "a.so"

    again = build_library(parts, toolchain=toolchain, output=tmp_path / "b.so", cache=cache)
    assert again.hits == 4
    assert again.link.hit
    assert again.output.read_bytes() == first.output.read_bytes()
    assert [o.seconds for o in again.objects] == [o.seconds for o in first.objects]
    assert not list((cache.root / "work").iterdir())


def test_the_output_may_be_appended_to(toolchain, cache, tmp_path):
    """Weights are: the cache must not notice."""
    output = tmp_path / "a.so"
    build_library([function("f")], toolchain=toolchain, output=output, cache=cache)
    with output.open("ab") as file:
        file.write(b"weights")
    again = build_library([function("f")], toolchain=toolchain, output=output, cache=cache)
    assert again.link.hit
    assert not output.read_bytes().endswith(b"weights")


def test_equal_sources_are_one_object(toolchain, cache):
    same = Source("twin", function("f").text, ("-O1",))
    assert len(compile_objects([function("f"), same], toolchain=toolchain, cache=cache)) == 1


def test_an_entry_shows_how_it_was_made(toolchain, cache):
    source = Source("warns", "int f() { int unused; return 1; }\n", ("-Wall",))
    (report,) = compile_objects([source], toolchain=toolchain, cache=cache)
    folder = report.path.parent
    names = ["command.txt", "entry.json", "log.txt", "warns.cc", "warns.o"]
    assert sorted(p.name for p in folder.iterdir()) == names
    assert "unused" in report.log
    (hit,) = compile_objects([source], toolchain=toolchain, cache=cache)
    assert hit.hit
    assert hit.log == report.log
    (folder / "warns.o").unlink()
    subprocess.run(
        ["sh", folder / "command.txt"], cwd=folder, check=True, stderr=subprocess.DEVNULL
    )
    assert (folder / "warns.o").exists()


def test_the_link_command_works_in_its_entry(toolchain, cache, tmp_path):
    report = build_library(
        [function("f")], toolchain=toolchain, output=tmp_path / "a.so", cache=cache
    )
    made = report.link.path
    made.unlink()
    subprocess.run(["sh", made.parent / "command.txt"], cwd=made.parent, check=True)
    assert made.exists()


def test_what_changes_an_object_changes_its_key(toolchain, tmp_path, monkeypatch):
    source = function("f")
    key = object_key(source, toolchain)
    assert object_key(Source("other_name", source.text, source.flags), toolchain) == key
    assert object_key(function("f", 2), toolchain) != key
    assert object_key(function("f", flags=("-O2",)), toolchain) != key
    assert object_key(source, fake(tmp_path, "true")) != key
    monkeypatch.setattr(sources, "headers_digest", lambda text: "changed")
    assert object_key(source, toolchain) != key


def test_flags_keep_their_borders(toolchain):
    joined, split = function("f", flags=("-Da b",)), function("f", flags=("-Da", "b"))
    assert object_key(joined, toolchain) != object_key(split, toolchain)


def test_only_included_headers_are_hashed_and_all_of_them(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "a.h").write_text('#include "sub/b.h"\n')
    (tmp_path / "sub" / "b.h").write_text("1")
    (tmp_path / "other.h").write_text("1")
    text = '#include <vector>\n  #  include "a.h"\n#include "absent.h"\n'
    first = headers_digest(text, tmp_path)
    (tmp_path / "other.h").write_text("2 and longer")
    assert headers_digest(text, tmp_path) == first
    assert headers_digest('#include "other.h"\n', tmp_path) != first
    (tmp_path / "sub" / "b.h").write_text("2 and longer")
    assert headers_digest(text, tmp_path) != first


def test_a_changed_version_script_links_again(toolchain, cache, tmp_path):
    script = tmp_path / "exports.map"
    keys: list[str] = []
    for names in ("f", "g"):
        script.write_text(f"{{ global: {names}; local: *; }};\n")
        report = build_library(
            [function("f"), function("g")],
            toolchain=toolchain,
            link_flags=[f"-Wl,--version-script={script}"],
            output=tmp_path / "a.so",
            cache=cache,
        )
        keys.append(report.link.key)
    assert keys[0] != keys[1]


@pytest.mark.parametrize("name", ["", "../up", "a b", "-o", "a/b"])
def test_a_name_is_a_file_name(name):
    with pytest.raises(ValueError, match="no name for a source"):
        Source(name, "")


def test_native_flags_are_refused():
    with pytest.raises(ValueError, match="name the architecture"):
        Source("f", "", ("-march=native",))


# --- failures -----------------------------------------------------------------------------------


def test_an_error_shows_what_the_compiler_said_and_how_to_see_it_again(toolchain, cache, tmp_path):
    output = tmp_path / "a.so"
    output.write_text("the library before")
    bad = Source("broken", '#include "none.h"\n')
    with pytest.raises(CompileError) as caught:
        build_library([function("f"), bad], toolchain=toolchain, output=output, jobs=1, cache=cache)
    error = caught.value
    assert "failed on broken (exit 1)" in str(error)
    assert "none.h: No such file or directory" in str(error)
    assert error.log is not None
    assert "none.h" in error.log.read_text()
    assert error.command is not None
    repeated = subprocess.run(
        error.command, shell=True, capture_output=True, text=True, check=False
    )
    assert "none.h" in repeated.stderr
    assert output.read_text() == "the library before"
    assert [p.name for p in tmp_path.iterdir() if p.name.startswith(".")] == []
    assert [r.hit for r in compile_objects([function("f")], toolchain=toolchain, cache=cache)] == [
        True
    ]


def test_a_failing_link_is_an_error_too(toolchain, cache, tmp_path):
    missing = Source("calls", f"void absent(); {VISIBLE} void f() {{ absent(); }}\n")
    with pytest.raises(CompileError, match=r"undefined reference to `?absent"):
        build_library(
            [missing],
            toolchain=toolchain,
            link_flags=["-Wl,--no-undefined"],
            output=tmp_path / "a.so",
            cache=cache,
        )
    assert not (tmp_path / "a.so").exists()


def test_the_first_failure_stops_the_others(cache, tmp_path):
    tools = fake(tmp_path, 'case "$*" in *bad*) sleep 0.2; exit 3;; *) sleep 600;; esac')
    start = time.perf_counter()
    with pytest.raises(CompileError, match=r"bad \(exit 3\)"):
        compile_objects(
            [Source("slow", "1"), Source("bad", "2"), Source("waits", "3")],
            toolchain=tools,
            jobs=2,
            cache=cache,
        )
    assert time.perf_counter() - start < 300
    assert leftovers(cache) == []
    assert all_dead(tmp_path / "pids")


def test_a_compiler_that_makes_nothing_has_failed(cache, tmp_path):
    with pytest.raises(CompileError, match="it printed nothing"):
        compile_objects([Source("f", "")], toolchain=fake(tmp_path, "exit 0"), cache=cache)


def test_a_killed_compiler_suggests_fewer_jobs(cache, tmp_path):
    with pytest.raises(CompileError, match="fewer jobs"):
        compile_objects([Source("f", "")], toolchain=fake(tmp_path, "kill -9 $$"), cache=cache)


def test_a_compiler_that_vanished(cache, tmp_path):
    tools = fake(tmp_path, "true")
    Path(tools.host.command[0]).unlink()
    with pytest.raises(CompileError, match="cannot be started"):
        compile_objects([Source("f", "")], toolchain=tools, cache=cache)


def test_a_compiler_that_meets_a_full_disk(cache, tmp_path):
    tools = fake(
        tmp_path, "echo 'fatal error: error writing to x.s: No space left on device'; exit 1"
    )
    with pytest.raises(StorageError, match="VITC_CACHE"):
        compile_objects([Source("f", "")], toolchain=tools, cache=cache)
    assert leftovers(cache) == []
    assert not (cache.root / "failed").exists()


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)]
    try:
        done = subprocess.run(mount, capture_output=True, text=True, check=False)
    except FileNotFoundError:
        pytest.skip("there is no mount command")
    if done.returncode != 0:
        pytest.skip("this user may not mount a small file system")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


def test_a_disk_that_really_is_full(toolchain, small_disk, tmp_path):
    big = Source("big", f"{VISIBLE} char data[1 << 20] = {{1}};\n")
    full = BuildCache(small_disk / "cache")
    with pytest.raises(StorageError, match="free some space"):
        compile_objects([big], toolchain=toolchain, cache=full)
    assert leftovers(full) == []

    output = small_disk / "a.so"
    output.write_text("the library before")
    with pytest.raises(StorageError, match=r"a\.so"):
        build_library([big], toolchain=toolchain, output=output, cache=BuildCache(tmp_path / "c"))
    assert output.read_text() == "the library before"
    assert sorted(p.name for p in small_disk.iterdir()) == ["a.so", "cache"]


# --- interrupts -----------------------------------------------------------------------------------


def all_dead(pids: Path, seconds: float = 60) -> bool:
    """Whether every process listed in `pids` ends within some time."""
    deadline = time.perf_counter() + seconds
    for pid in (int(line) for line in pids.read_text().split()):
        while running(pid):
            if time.perf_counter() > deadline:
                return False
            time.sleep(0.02)
    return True


def running(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


INTERRUPTED = """
import signal, sys
from pathlib import Path
signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored where jobs run in the background
sys.path.insert(0, str(Path(sys.argv[1])))
import test_build
from vitc.codegen.build import Source, build_library
from vitc.codegen.cache import BuildCache
folder = Path(sys.argv[2])
body = f"echo x > half.o; sleep 600 & echo $! >> {folder}/pids; wait"
tools = test_build.fake(folder, body)
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


# --- small things ---------------------------------------------------------------------------------


def test_first_errors_are_the_ones_shown():
    log = "\n".join(f"a.cc:{i}: error: e{i}\n  | code\n  | ^~~\nnote {i}" for i in range(9))
    shown = first_errors(log)
    assert [line for line in shown if "error" in line] == [
        f"a.cc:{i}: error: e{i}" for i in range(3)
    ]
    assert not any(line.startswith("note") for line in shown)
    assert first_errors("one\ntwo") == ["one", "two"]


def test_the_cache_stays_within_its_limit(toolchain, tmp_path):
    cache = BuildCache(tmp_path / "cache", limit=1)
    report = build_library(
        [function("f")], toolchain=toolchain, output=tmp_path / "a.so", cache=cache
    )
    assert call(report.output, "f") == 1
    assert cache.size() == 0


def test_jobs_default_to_the_cpus_of_this_process(monkeypatch):
    monkeypatch.setattr(build.os, "sched_getaffinity", lambda _: {0, 3, 5})
    assert build.default_jobs() == 3


def test_a_cuda_library_builds_and_loads_without_a_gpu(cache, tmp_path):
    if find_compiler("cuda").compiler is None:
        pytest.skip("no nvcc: pip install vitc[cuda]")
    kernel = Source(
        "kernel",
        "__global__ void k(float* x) { *x = 1; }\n"
        f"{VISIBLE} int launch(float* x) {{ k<<<1, 1>>>(x); return cudaGetLastError() != 0; }}\n",
        ("-arch=sm_90a",),
        "cuda",
    )
    report = build_library(
        [kernel, function("f", 7)],
        toolchain=find_toolchain(["cuda"]),
        output=tmp_path / "a.so",
        cache=cache,
    )
    assert call(report.output, "f") == 7


def test_a_hip_library_builds_and_loads_without_a_gpu(cache, tmp_path):
    if find_compiler("hip").compiler is None:
        pytest.skip("no hipcc: apt-get install hipcc")
    kernel = Source(
        "kernel",
        "#include <hip/hip_runtime.h>\n__global__ void k(float* x) { *x = 1; }\n"
        f"{VISIBLE} int launch(float* x) {{ k<<<1, 1>>>(x); return hipGetLastError() != 0; }}\n",
        ("--offload-arch=gfx90a",),
        "hip",
    )
    report = build_library(
        [kernel, function("f", 7)],
        toolchain=find_toolchain(["hip"]),
        output=tmp_path / "a.so",
        cache=cache,
    )
    assert call(report.output, "f") == 7
