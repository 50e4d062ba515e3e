"""Builds CUDA text for the host emulation and runs it on numpy arrays.

A source under test defines `extern "C" int run(void* const* args, const int64_t* sizes)`; its
arguments live in guarded device memory, so running out of a buffer is an error.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INCLUDE = Path(__file__).resolve().parents[3] / "vitc" / "templates" / "include"
FOLDERS = ("gpu", "gpu/sm90", "emu")  # of the headers that kernels use
SCHEDULES = ("forward", "reverse")
STALLING = ("random:1", "random:3")  # some warps and lanes stay behind
FLAGS = tuple(
    "-std=c++17 -O1 -march=x86-64-v3 -fPIC -shared -g1 -fstack-clash-protection".split()
    + "-Wall -Wextra -Werror -DVITC_EMULATE".split()
)
EXPORTS = """
extern "C" {
const char* test_last_error() { return vitc::emu::last_error(); }
void* test_allocate(size_t bytes, const char* name) {
  return vitc::emu::device_memory.allocate(bytes, name);
}
void test_hold(void* address) { vitc::emu::device_memory.hold(address); }
// Stacks take two mappings a thread, of which a process has 65530: each library would keep its own.
void test_rest() {
  if (vitc::emu::machine != nullptr) vitc::emu::machine->stacks.release();
}
void test_release(void* address) { vitc::emu::device_memory.release(address); }
void test_statistics(uint64_t* out) {
  const auto& s = vitc::emu::last_statistics;
  out[0] = s.blocks, out[1] = s.collectives, out[2] = s.barriers, out[3] = s.mma;
  out[4] = s.ldmatrix, out[5] = s.ldmatrix_conflicts;
  out[6] = s.tensor_copies, out[7] = s.wgmma;
}
}
"""


class EmulationError(Exception):
    """A launch failed; the message is the emulator's."""


@dataclass(frozen=True)
class Statistics:
    """Counts of the latest launch (vitc/emu/machine.h)."""

    blocks: int
    collectives: int
    barriers: int
    mma: int
    ldmatrix: int
    ldmatrix_conflicts: int
    tensor_copies: int
    wgmma: int


class Emulated:
    """A loaded library with one `run` entry."""

    def __init__(self, path: Path) -> None:
        self._lib = ctypes.CDLL(str(path))
        self._lib.test_last_error.restype = ctypes.c_char_p
        self._lib.test_allocate.restype = ctypes.c_void_p
        self._lib.test_allocate.argtypes = (ctypes.c_size_t, ctypes.c_char_p)
        self._lib.test_release.argtypes = (ctypes.c_void_p,)
        self._lib.test_hold.argtypes = (ctypes.c_void_p,)

    def run(
        self,
        arrays: Sequence[NDArray],
        sizes: Sequence[int] = (),
        *,
        schedule: str = "forward",
        entry: str = "run",
        held: Sequence[int] = (),
    ) -> list[NDArray]:
        """Runs on copies of `arrays`; returns what the buffers hold afterwards.

        held: which of them the kernel before is still at work on when the first launch begins.
        Raises EmulationError with the emulator's message.
        """
        os.environ["VITC_EMU_SCHEDULE"] = schedule
        buffers = [
            self._lib.test_allocate(max(a.nbytes, 1), f"args[{i}]".encode())
            for i, a in enumerate(arrays)
        ]
        try:
            if None in buffers:
                raise MemoryError(f"no memory for buffers of {[a.nbytes for a in arrays]} bytes")
            for address, array in zip(buffers, arrays, strict=True):
                array = np.ascontiguousarray(array)
                ctypes.memmove(address, array.ctypes.data, array.nbytes)
            pointers = (ctypes.c_void_p * max(len(buffers), 1))(*buffers)
            numbers = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
            for i in held:
                self._lib.test_hold(buffers[i])
            if getattr(self._lib, entry)(pointers, numbers) != 0:
                raise EmulationError(self._lib.test_last_error().decode())
            results = [np.empty_like(np.ascontiguousarray(a)) for a in arrays]
            for address, result in zip(buffers, results, strict=True):
                ctypes.memmove(result.ctypes.data, address, result.nbytes)
            return results
        finally:
            self._lib.test_rest()
            for address in buffers:
                self._lib.test_release(address)

    @property
    def statistics(self) -> Statistics:
        numbers = (ctypes.c_uint64 * 8)()
        self._lib.test_statistics(numbers)
        return Statistics(*numbers)


def cache_directory() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    path = Path(base) / "vitc-tests"
    path.mkdir(parents=True, exist_ok=True)
    return path


def headers(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix in (".h", ".cuh"))


def header_digest(include: Path = INCLUDE) -> str:
    digest = hashlib.sha256()
    for folder in FOLDERS:
        for header in headers(include / "vitc" / folder):
            digest.update(header.name.encode() + header.read_bytes())
    return digest.hexdigest()


def build(text: str, *, flags: Sequence[str] = (), include: Path = INCLUDE) -> Emulated:
    """Compiles `text` with g++ and loads it. `include` may be a patched copy of the headers."""
    compiler = os.environ.get("CXX", "g++")
    command = [compiler, *FLAGS, *flags, f"-I{include}"]
    key = hashlib.sha256(
        "\0".join([text, EXPORTS, compiler, *FLAGS, *flags, header_digest(include)]).encode()
    ).hexdigest()[:24]
    library = cache_directory() / f"{key}.so"
    if not library.exists():
        source = library.with_suffix(f".{os.getpid()}.cc")
        source.write_text(text + EXPORTS)
        made = library.with_suffix(f".{os.getpid()}.tmp")
        done = subprocess.run(
            [*command, str(source), "-o", str(made)], capture_output=True, text=True, check=False
        )
        if done.returncode != 0:
            raise AssertionError(f"{' '.join(command)} {source}\n{done.stderr[:6000]}")
        source.rename(library.with_suffix(".cc"))
        made.rename(library)
    return Emulated(library)


def patched_headers(folder: Path, name: str, old: str, new: str) -> Path:
    """A copy of the headers under `folder` in which `old` is replaced in vitc/`name` once."""
    for part in FOLDERS:
        (folder / "vitc" / part).mkdir(parents=True, exist_ok=True)
        for header in headers(INCLUDE / "vitc" / part):
            (folder / "vitc" / part / header.name).write_bytes(header.read_bytes())
    path = folder / "vitc" / name
    text = path.read_text()
    assert text.count(old) == 1, f"{name} holds {text.count(old)} times: {old}"
    path.write_text(text.replace(old, new))
    return folder
