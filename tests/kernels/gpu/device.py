"""Builds the text of the cases with nvcc and runs it on a GPU, through ctypes alone."""

from __future__ import annotations

import ctypes
import hashlib
import subprocess
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from kernels.emu.emulation import INCLUDE, cache_directory, header_digest
from numpy.typing import NDArray

GUARD = 1024  # bytes before and after each buffer that no kernel may write
FILL = 0xA5
EXPORTS = """
extern "C" {
void* test_allocate(size_t bytes) {
  void* p = nullptr;
  return cudaMalloc(&p, bytes) == cudaSuccess ? p : nullptr;
}
void test_release(void* p) { cudaFree(p); }
int test_copy(void* to, const void* from, size_t bytes) {
  return int(cudaMemcpy(to, from, bytes, cudaMemcpyDefault));
}
int test_synchronize() { return int(cudaDeviceSynchronize()); }
const char* test_error(int code) { return vitc::gpu::error_text(code); }
using TestRun = int (*)(void* const*, const int64_t*);
// Microseconds a call, from one pair of events around `repeats` calls; negative on failure.
float test_time(TestRun run, void* const* args, const int64_t* sizes, int repeats) {
  cudaEvent_t begin, end;
  cudaEventCreate(&begin);
  cudaEventCreate(&end);
  for (int i = 0; i < 3; ++i) {
    if (run(args, sizes) != 0) return -1;
  }
  cudaEventRecord(begin);
  for (int i = 0; i < repeats; ++i) run(args, sizes);
  cudaEventRecord(end);
  if (cudaEventSynchronize(end) != cudaSuccess) return -1;
  float milliseconds = 0;
  cudaEventElapsedTime(&milliseconds, begin, end);
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  return milliseconds * 1000 / repeats;
}
}
"""


class DeviceError(Exception):
    """A launch or the device failed, or a kernel wrote outside its buffers."""


class DeviceLibrary:
    """The same interface as kernels.emu.emulation.Emulated, on a GPU."""

    def __init__(self, path: Path) -> None:
        lib = self._lib = ctypes.CDLL(str(path))
        lib.test_allocate.restype = ctypes.c_void_p
        lib.test_allocate.argtypes = (ctypes.c_size_t,)
        lib.test_release.argtypes = (ctypes.c_void_p,)
        lib.test_copy.argtypes = (ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t)
        lib.test_error.restype = ctypes.c_char_p
        lib.test_time.restype = ctypes.c_float

    def _check(self, code: int) -> None:
        if code != 0:
            raise DeviceError(f"{self._lib.test_error(code).decode()} ({code})")

    def upload(self, array: NDArray) -> int:
        """The address of a guarded copy; free it with `release`."""
        data = np.ascontiguousarray(array)
        around = np.full(data.nbytes + 2 * GUARD, FILL, np.uint8)
        around[GUARD : GUARD + data.nbytes] = data.reshape(-1).view(np.uint8)
        address = self._lib.test_allocate(around.nbytes)
        if not address:
            raise DeviceError(f"no device memory for {around.nbytes} bytes")
        self._check(self._lib.test_copy(address, around.ctypes.data, around.nbytes))
        return address + GUARD

    def download(self, address: int, like: NDArray) -> NDArray:
        around = np.empty(like.nbytes + 2 * GUARD, np.uint8)
        self._check(self._lib.test_copy(around.ctypes.data, address - GUARD, around.nbytes))
        body = around[GUARD : GUARD + like.nbytes]
        if (np.delete(around, np.s_[GUARD : GUARD + like.nbytes]) != FILL).any():
            raise DeviceError("a kernel wrote outside a buffer")
        return body.copy().view(like.dtype).reshape(like.shape)

    def release(self, address: int) -> None:
        self._lib.test_release(address - GUARD)

    def run(
        self,
        arrays: Sequence[NDArray],
        sizes: Sequence[int] = (),
        *,
        schedule: str = "",
        entry: str = "run",
    ) -> list[NDArray]:
        """As Emulated.run; `schedule` has no meaning here."""
        buffers = [self.upload(a) for a in arrays]
        try:
            pointers = (ctypes.c_void_p * max(len(buffers), 1))(*buffers)
            numbers = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
            self._check(getattr(self._lib, entry)(pointers, numbers))
            self._check(self._lib.test_synchronize())
            return [self.download(b, a) for b, a in zip(buffers, arrays, strict=True)]
        finally:
            for address in buffers:
                self.release(address)

    def time(
        self, buffers: Sequence[int], sizes: Sequence[int], *, entry: str, repeats: int
    ) -> float:
        """Microseconds a call, back to back, on uploaded buffers."""
        pointers = (ctypes.c_void_p * max(len(buffers), 1))(*buffers)
        numbers = (ctypes.c_int64 * max(len(sizes), 1))(*sizes)
        run = getattr(self._lib, entry)
        taken = self._lib.test_time(run, pointers, numbers, repeats)
        if taken < 0:
            raise DeviceError(f"{entry} failed")
        return taken


def build_device(text: str, arch: str, *, nvcc: str = "nvcc") -> Path:
    """A shared library for `arch` ("sm_80"; "compute_80" for PTX alone), cached."""
    code = f"-gencode=arch={arch.replace('sm_', 'compute_')},code={arch}"
    flags = f"-std=c++17 -O3 -shared -Xcompiler -fPIC -lineinfo {code}".split()
    stamp = "\0".join([text, EXPORTS, nvcc, *flags, header_digest()])
    library = cache_directory() / f"device-{hashlib.sha256(stamp.encode()).hexdigest()[:24]}.so"
    if not library.exists():
        source = library.with_suffix(".cu")
        source.write_text(text + EXPORTS)
        made = library.with_suffix(".tmp.so")
        command = [nvcc, *flags, f"-I{INCLUDE}", str(source), "-o", str(made)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise DeviceError(f"{' '.join(command)}\n{done.stderr[:6000]}")
        made.rename(library)
    return library
