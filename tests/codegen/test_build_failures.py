"""Builds that fail say why and how to see it again, and leave nothing behind."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from codegen.building import VISIBLE, all_dead, fake, function, leftovers

from vitc.codegen.build import build_library, compile_objects
from vitc.codegen.cache import BuildCache
from vitc.codegen.sources import Source
from vitc.errors import CompileError, StorageError


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
