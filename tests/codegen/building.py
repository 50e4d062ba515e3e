"""Sources, compilers that misbehave, and what builds leave behind."""

from __future__ import annotations

import ctypes
import time
from pathlib import Path

from vitc.codegen.cache import BuildCache
from vitc.codegen.sources import Source
from vitc.codegen.toolchain import Compiler, Toolchain

VISIBLE = 'extern "C" __attribute__((visibility("default")))'


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
