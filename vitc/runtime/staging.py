"""Host arrays to a GPU and back, through pinned memory that is allocated once."""

from __future__ import annotations

import ctypes
import math
import weakref
from typing import Any

import numpy as np

from vitc.runtime.cuda import CudaDriver, DeviceBuffer, PinnedBuffer, Stream
from vitc.runtime.library import PortInfo

Array = np.ndarray[Any, np.dtype[Any]]
# The GPU copies one piece while the CPU fills the next.
_PIECE = 4 << 20


class _Slot:
    """The buffers of one input or output, for the maximum batch."""

    def __init__(self, driver: CudaDriver, port: PortInfo) -> None:
        self.size = math.prod(port.shape) * port.element.itemsize
        self.pinned = PinnedBuffer(driver, self.size)
        self.device = DeviceBuffer(driver, self.size)


class Staging:
    """The buffers and the stream of one context, for one call at a time."""

    def __init__(self, driver: CudaDriver) -> None:
        self._driver = driver
        self._slots: dict[PortInfo, _Slot] = {}
        self._stream = Stream(driver)
        self._busy = False
        # Before the buffers are freed: after a call that failed they may still be copied from.
        weakref.finalize(self, driver.release, "cuStreamSynchronize", self.stream)

    @property
    def stream(self) -> int:
        """Handle of the stream that copies run on."""
        return self._stream.handle

    def reserve(self, port: PortInfo) -> int:
        """Address on the GPU of the port's memory."""
        return self._slot(port).device.address

    def upload(self, port: PortInfo, array: Array) -> int:
        """Starts to copy a contiguous array to the port's memory; its address."""
        slot = self._slot(port)
        if array.nbytes > slot.size:  # of a wrong shape, which the library is about to refuse
            return slot.device.address
        if self._busy:  # an earlier call failed on its way
            self._wait()
        self._busy = True
        pinned, device = slot.pinned.address, slot.device.address
        with self._driver.current():
            for at in range(0, array.nbytes, _PIECE):
                size = min(_PIECE, array.nbytes - at)
                ctypes.memmove(pinned + at, array.ctypes.data + at, size)
                self._driver("cuMemcpyHtoDAsync", device + at, pinned + at, size, self.stream)
        return device

    def download(self, arrays: list[tuple[PortInfo, Array]]) -> None:
        """Fills the arrays from their ports' memory, after all work on the stream."""
        with self._driver.current():
            for port, array in arrays:
                pinned, device = self._slot(port).pinned.address, self._slot(port).device.address
                self._driver("cuMemcpyDtoHAsync", pinned, device, array.nbytes, self.stream)
        self._wait()
        for port, array in arrays:
            ctypes.memmove(array.ctypes.data, self._slot(port).pinned.address, array.nbytes)

    def _wait(self) -> None:
        with self._driver.current():
            self._driver("cuStreamSynchronize", self.stream)
        self._busy = False

    def _slot(self, port: PortInfo) -> _Slot:
        slot = self._slots.get(port)
        if slot is None:
            slot = self._slots[port] = _Slot(self._driver, port)
        return slot
