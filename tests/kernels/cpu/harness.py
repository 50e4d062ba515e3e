"""Builds small kernel instances with g++ and calls them through ctypes."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import subprocess
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

INCLUDE = Path(__file__).parents[3] / "vitc" / "templates" / "include"
COMMON = (
    "-std=c++17 -O3 -fno-math-errno -fno-trapping-math -ffp-contract=fast "
    # g++ 12 takes the `undefined` of its own AVX-512 intrinsics for a mistake.
    "-fvisibility=hidden -fPIC -Wall -Wextra -Werror -Wno-uninitialized -Wno-maybe-uninitialized"
).split()
_AVX512 = "-mavx512f -mavx512bw -mavx512dq -mavx512vl -mfma -mf16c".split()
ISA_FLAGS = {
    "avx2": "-mavx2 -mfma -mf16c".split(),
    "avx512": _AVX512,
    "avx512bf16": [*_AVX512, "-mavx512bf16"],
}
_NEEDS = {
    "avx2": ("avx2", "fma"),
    "avx512": ("avx512vl", "avx512dq"),
    "avx512bf16": ("avx512_bf16",),
}

HOST = """
#include "vitc/cpu/threads.h"
#include "vitc/kernel.h"
#define API extern "C" __attribute__((visibility("default")))
using vitc::Executor;
API Executor* executor_create(int threads) { return new Executor(threads); }
API void executor_destroy(Executor* e) { delete e; }
API int executor_threads(Executor* e) { return e->threads(); }
"""
ENTRY = """
extern "C" int %(name)s_%(isa)s(const vitc::Call&);
extern "C" uint64_t %(name)s_scratch_%(isa)s(int);
API int call_%(name)s(void** args, int64_t batch, void* scratch, Executor* e, int repeats) {
  int status = 0;
  for (int i = 0; i < repeats; ++i) status |= %(name)s_%(isa)s({args, batch, scratch, e});
  return status;
}
API uint64_t scratch_%(name)s(int threads) { return %(name)s_scratch_%(isa)s(threads); }
"""


def isas() -> list[str]:
    """The ISA levels that this machine runs."""
    flags = Path("/proc/cpuinfo").read_text().split()
    return [isa for isa, needs in _NEEDS.items() if all(need in flags for need in needs)]


def _cache_dir() -> Path:
    path = Path(tempfile.gettempdir()) / f"vitc-kernel-tests-{os.getuid()}"
    path.mkdir(exist_ok=True)
    return path


@functools.cache
def _headers_digest() -> str:
    digest = hashlib.sha256()
    for header in sorted(INCLUDE.rglob("*.h")):
        digest.update(header.read_bytes())
    return digest.hexdigest()


def _compile(source: str, isa: str | None, flags: tuple[str, ...] = ()) -> Path:
    command = ["g++", *COMMON, f"-I{INCLUDE}", *flags]
    if isa:
        command += [f"-DVITC_ISA={isa}", *ISA_FLAGS[isa]]
    key = hashlib.sha256("\0".join([source, _headers_digest(), *command]).encode()).hexdigest()[:20]
    obj = _cache_dir() / f"{key}.o"
    if not obj.exists():
        unit = obj.with_suffix(f".{os.getpid()}.cc")
        unit.write_text(source)
        part = obj.with_suffix(f".{os.getpid()}.o")
        result = subprocess.run(
            [*command, "-c", str(unit), "-o", str(part)],
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode:
            raise AssertionError(f"{' '.join(command)}\n{result.stderr[:6000]}")
        part.rename(obj)
        unit.unlink()
    return obj


class KernelLibrary:
    """One source compiled for one ISA, with the kernels `names` callable from Python."""

    def __init__(
        self, source: str, names: list[str], isa: str, flags: tuple[str, ...] = ()
    ) -> None:
        self.isa = isa
        host = HOST + "".join(ENTRY % {"name": name, "isa": isa} for name in names)
        self.object_path = _compile(source, isa, flags)
        objects = [self.object_path, _compile(host, None)]
        stem = hashlib.sha256("".join(map(str, objects)).encode()).hexdigest()[:20]
        path = _cache_dir() / f"{stem}.so"
        if not path.exists():
            part = path.with_suffix(f".{os.getpid()}.so")
            subprocess.run(
                ["g++", "-shared", "-o", str(part), *map(str, objects), "-pthread"], check=True
            )
            part.rename(path)
        self._lib = ctypes.CDLL(str(path))
        self._lib.executor_create.restype = ctypes.c_void_p
        for name in names:
            getattr(self._lib, f"scratch_{name}").restype = ctypes.c_uint64

    def run(
        self, name: str, args: list[NDArray | None], batch: int, threads: int = 1, repeats: int = 1
    ) -> None:
        """Calls the kernel on arrays; NaN-filled scratch shows reads of what was never written."""
        executor = Executor(self, threads)
        executor.run(name, args, batch, repeats)
        executor.close()


class Executor:
    """A thread pool and its scratch."""

    def __init__(self, library: KernelLibrary, threads: int) -> None:
        self._library = library
        self._lib = library._lib
        self._handle = ctypes.c_void_p(self._lib.executor_create(threads))
        self.threads: int = self._lib.executor_threads(self._handle)
        self._scratch = np.empty(0, np.uint8)

    def run(self, name: str, args: list[NDArray | None], batch: int, repeats: int = 1) -> None:
        needed = getattr(self._lib, f"scratch_{name}")(self.threads)
        if self._scratch.size < needed + 64:
            self._scratch = np.full(needed + 64, 0xFF, np.uint8)
        base = (self._scratch.ctypes.data + 63) // 64 * 64
        pointers = (ctypes.c_void_p * len(args))(*[a if a is None else a.ctypes.data for a in args])
        call = getattr(self._lib, f"call_{name}")
        status = call(pointers, ctypes.c_int64(batch), ctypes.c_void_p(base), self._handle, repeats)
        assert status == 0

    def close(self) -> None:
        self._lib.executor_destroy(self._handle)


# ---- storage ---------------------------------------------------------------------------------
def to_bf16(x: NDArray) -> NDArray[np.uint16]:
    """Rounds to nearest even, as bits."""
    bits = np.ascontiguousarray(x, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)


def from_bf16(bits: NDArray[np.uint16]) -> NDArray[np.float32]:
    return (bits.astype(np.uint32) << 16).view(np.float32)


def cast(x: NDArray, dtype: str) -> NDArray:
    """float32 array as stored: float32 or bf16 bits. dtype: "float" or "bf16"."""
    return to_bf16(x) if dtype == "bf16" else np.ascontiguousarray(x, np.float32)


def as_float(x: NDArray) -> NDArray[np.float64]:
    return (from_bf16(x) if x.dtype == np.uint16 else x).astype(np.float64)


def empty(shape: tuple[int, ...], dtype: str) -> NDArray:
    """An output buffer full of NaN."""
    return cast(np.full(shape, np.nan, np.float32), dtype)


def pack_panels(w: NDArray, dtype: str) -> NDArray:
    """[N, K] float32 to panels: [N/32][K][32], or for bf16 [N/32][K/2][32][2], zero padded."""
    n, k = w.shape
    step = 2 if dtype == "bf16" else 1
    padded = np.zeros((-(-n // 32) * 32, -(-k // step) * step), np.float32)
    padded[:n, :k] = w
    panels = padded.reshape(-1, 32, padded.shape[1] // step, step).transpose(0, 2, 1, 3)
    return cast(panels, dtype)


def relative_error(got: NDArray, want: NDArray) -> float:
    got = as_float(got)
    return float(np.linalg.norm(got - want) / max(np.linalg.norm(want), 1e-30))
