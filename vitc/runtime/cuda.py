"""The few calls of CUDA's driver API, through cuda-python, that tensors of others than torch need.

The library itself needs none of this: it brings its own runtime.
"""

from __future__ import annotations

import functools
import importlib
import os
import weakref
from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import Any

from vitc.errors import DeviceError

# cuda.h, "Stream synchronization behaviour": the stream that waits for all ordinary ones.
DEFAULT_STREAM = 1


# Errors that end a process's use of CUDA, and the words of vitc/host/cuda/error.h for them.
_FAULTS = frozenset({214, 700, 702, 710, 714, 715, 716, 717, 718, 719})
_FAULT = (
    ": some kernel of this process failed, perhaps an earlier one; CUDA_LAUNCH_BLOCKING=1 shows "
    "which. The process must start anew"
)


class CudaDriver:
    """The driver API in the primary context of one GPU, which torch and the library share.

    Raises DeviceError, here and in each call, with the driver's own words.
    """

    def __init__(self, index: int) -> None:
        try:
            self._api: Any = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise DeviceError(
                "numpy arrays and DLPack objects reach a GPU through cuda-python, which is not "
                "installed",
                hint="pip install cuda-python, or pass torch tensors",
            ) from error
        self.index = index
        self._process = os.getpid()
        self._relaxed = self._api.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_RELAXED
        try:
            self("cuInit", 0)
            self._context = self("cuDevicePrimaryCtxRetain", self("cuDeviceGet", index))
        except RuntimeError as error:  # cuda-python's word for a missing libcuda.so
            raise DeviceError("this machine has no NVIDIA driver (libcuda.so.1)") from error

    def __call__(self, function: str, *arguments: Any) -> Any:
        """Calls a function; its result, or None where it has none."""
        code, *result = getattr(self._api, function)(*arguments)
        if int(code) != 0:
            raise DeviceError(f"{function} failed on cuda:{self.index}: {self._describe(code)}")
        return result[0] if result else None

    def succeeds(self, function: str, *arguments: Any) -> bool:
        """Whether the call returned success."""
        return int(getattr(self._api, function)(*arguments)[0]) == 0

    @contextmanager
    def current(self) -> Generator[None]:
        """Makes the GPU the calling thread's, as CudaHere in vitc/host/cuda/scope.h does."""
        self("cuCtxPushCurrent", self._context)
        before = self("cuThreadExchangeStreamCaptureMode", self._relaxed)
        try:
            yield
        finally:
            self("cuThreadExchangeStreamCaptureMode", before)
            self("cuCtxPopCurrent")

    def release(self, function: str, *handle: Any) -> None:
        """Frees or waits for something; not in a fork of the process that made it; never raises."""
        if os.getpid() == self._process:
            with suppress(DeviceError), self.current():
                self(function, *handle)

    def _describe(self, code: Any) -> str:
        _, text = self._api.cuGetErrorString(code)
        advice = _FAULT if int(code) in _FAULTS else ""
        return f"{(text or b'').decode(errors='replace')} ({getattr(code, 'name', code)}){advice}"


def cuda_driver(index: int) -> CudaDriver:
    """The driver on a GPU. Raises DeviceError where there is none or cuda-python is missing."""
    return _driver_of_process(index, os.getpid())


@functools.lru_cache(maxsize=64)
def _driver_of_process(index: int, process: int) -> CudaDriver:
    del process  # what a parent has opened is of no use in its fork
    return CudaDriver(index)


class DeviceBuffer:
    """Memory of a GPU, freed with this object."""

    def __init__(self, driver: CudaDriver, size: int) -> None:
        with driver.current():
            self.address = int(driver("cuMemAlloc", max(size, 1)))
        self.size = size
        weakref.finalize(self, driver.release, "cuMemFree", self.address)


class PinnedBuffer:
    """Host memory that the GPU copies from and to by itself."""

    def __init__(self, driver: CudaDriver, size: int) -> None:
        with driver.current():
            self.address = int(driver("cuMemHostAlloc", max(size, 1), 0))
        weakref.finalize(self, driver.release, "cuMemFreeHost", self.address)


class Stream:
    """A stream that neither waits for the default stream nor makes it wait."""

    def __init__(self, driver: CudaDriver) -> None:
        non_blocking = 1  # CU_STREAM_NON_BLOCKING
        with driver.current():
            self.handle = int(driver("cuStreamCreate", non_blocking))
        weakref.finalize(self, driver.release, "cuStreamDestroy", self.handle)


class Event:
    """A point in a stream's work."""

    def __init__(self, driver: CudaDriver) -> None:
        no_timing = 2  # CU_EVENT_DISABLE_TIMING
        with driver.current():
            self.handle = int(driver("cuEventCreate", no_timing))
        weakref.finalize(self, driver.release, "cuEventDestroy", self.handle)
