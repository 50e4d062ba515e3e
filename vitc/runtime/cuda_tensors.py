"""Tensors in and out of a library on a GPU: torch and DLPack without copies, numpy with them."""

from __future__ import annotations

import math
import sys
from collections import deque
from typing import Any

import numpy as np

from vitc.errors import InputError
from vitc.runtime.cuda import DEFAULT_STREAM, CudaDriver, Event, cuda_driver
from vitc.runtime.dlpack import CPU, CUDA, CUDA_MANAGED, BufferPool, DeviceArray, Imported
from vitc.runtime.library import PortInfo, TensorView
from vitc.runtime.place import Place
from vitc.runtime.refuse import not_a_tensor, not_contiguous, wrong_device, wrong_dtype
from vitc.runtime.staging import Staging
from vitc.runtime.tensors import (
    DLPACK_DEVICES,
    Array,
    Family,
    NumpyFamily,
    TorchFamily,
    from_dlpack_of,
)


class CudaFamilies:
    """What one context keeps for its callers' tensors; made when the first of a kind comes in."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._staging: Staging | None = None
        self._exchange: _Exchange | None = None

    def of(self, value: Any) -> Family:
        """The family of a tensor. Raises InputError where it is no tensor."""
        if isinstance(value, np.ndarray):
            if self._staging is None:
                self._staging = Staging(cuda_driver(self._place.index))
            return CudaNumpyFamily(self._staging)
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return TorchFamily(torch, self._place)
        if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
            if self._exchange is None:
                self._exchange = _Exchange(cuda_driver(self._place.index))
            return CudaDlpackFamily(self._exchange, self._place, value)
        raise not_a_tensor(value)

    def close(self) -> None:
        """Drops all buffers; outputs that callers hold live on."""
        self._staging = None
        if self._exchange is not None:
            self._exchange.wait()
        self._exchange = None


class CudaNumpyFamily:
    """numpy arrays: copied to the GPU and back; finish() waits for the result."""

    def __init__(self, staging: Staging) -> None:
        self._staging = staging
        self._host = NumpyFamily()
        self._results: list[tuple[PortInfo, Array]] = []
        self.stream = staging.stream

    def view(self, port: PortInfo, value: Any) -> TensorView:
        view = self._host.view(port, value)
        return TensorView(self._staging.upload(port, value), view.dtype, view.shape)

    def reuse(self, port: PortInfo, value: Any) -> TensorView:
        view = self.view(port, value)
        self._results.append((port, value))
        return view

    def empty(self, port: PortInfo, batch: int) -> tuple[Any, TensorView]:
        array, view = self._host.empty(port, batch)
        self._results.append((port, array))
        return array, TensorView(self._staging.reserve(port), view.dtype, view.shape)

    def finish(self, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._staging.download(self._results)
        return outputs


class _Exchange:
    """The tensors that a context has from others and has given to others."""

    def __init__(self, driver: CudaDriver) -> None:
        self.driver = driver
        self.pool = BufferPool(driver)
        self._held: deque[tuple[Event, list[Imported]]] = deque()

    def hold(self, tensors: list[Imported]) -> None:
        """Keeps inputs until the GPU has read them: their owner need not know when that is."""
        with self.driver.current():
            while self._held and self.driver.succeeds("cuEventQuery", self._held[0][0].handle):
                self._held.popleft()
            event = Event(self.driver)
            self.driver("cuEventRecord", event.handle, DEFAULT_STREAM)
        self._held.append((event, tensors))

    def wait(self) -> None:
        """Until nothing need be held."""
        with self.driver.current():
            while self._held:
                # Popped only afterwards: an event that nothing holds is destroyed.
                self.driver.succeeds("cuEventSynchronize", self._held[0][0].handle)
                self._held.popleft()


class CudaDlpackFamily:
    """Objects with __dlpack__ in GPU memory. The library runs on the default stream, with which
    other libraries' streams take turns unless they were made not to.
    """

    def __init__(self, exchange: _Exchange, place: Place, first: Any) -> None:
        self._exchange = exchange
        self._place = place
        self._first = first
        self._taken: list[Imported] = []
        self.stream = DEFAULT_STREAM

    def __del__(self) -> None:
        # A call that failed on its way may have queued kernels, which still use what it took.
        if self._taken:
            self._exchange.driver.release("cuStreamSynchronize", DEFAULT_STREAM)

    def view(self, port: PortInfo, value: Any) -> TensorView:
        kind, index = (int(part) for part in value.__dlpack_device__())
        if kind not in (CUDA, CUDA_MANAGED) or (kind == CUDA and index != self._place.index):
            where = "the CPU" if kind == CPU else DLPACK_DEVICES.get(kind, f"device type {kind}")
            given = f"cuda:{index}" if kind == CUDA else where
            raise wrong_device(port, given, self._place, f"a copy on {self._place}")
        try:
            tensor = Imported(value.__dlpack__(stream=DEFAULT_STREAM))
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{port.kind} '{port.name}' does not pass through DLPack: {error}",
                hint="pass a torch tensor",
            ) from error
        if tensor.dtype != port.dtype:
            raise wrong_dtype(port, tensor.dtype, f"convert it to {port.dtype}")
        if not tensor.contiguous:
            raise not_contiguous(port, tensor.shape, "a contiguous copy")
        self._taken.append(tensor)
        return TensorView(tensor.address, port.element, tensor.shape)

    def reuse(self, port: PortInfo, value: Any) -> TensorView:
        return self.view(port, value)

    def empty(self, port: PortInfo, batch: int) -> tuple[Any, TensorView]:
        shape = (batch, *port.shape[1:])
        # The library refuses other batches, so that no memory is needed for them.
        size = math.prod(shape if 0 < batch <= port.shape[0] else (1,)) * port.element.itemsize
        array = DeviceArray(self._exchange.pool, port.element, shape, size)
        return array, TensorView(array.address, port.element, shape)

    def finish(self, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        self._exchange.hold(self._taken)
        self._taken = []
        convert = from_dlpack_of(self._first)
        if convert is np.from_dlpack:  # it has none of its own, and numpy knows no GPU
            return outputs
        ours = [isinstance(output, DeviceArray) for output in outputs]
        return tuple(
            convert(output) if mine else output for output, mine in zip(outputs, ours, strict=True)
        )
