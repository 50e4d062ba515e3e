"""DLPack on a GPU: memory of others in, our memory out, as the capsules that Python exchanges.

Structures and rules: https://dmlc.github.io/dlpack/latest/c_api.html and python_spec.html.
"""

from __future__ import annotations

import ctypes
from ctypes import POINTER, c_int32, c_int64, c_uint8, c_uint16, c_uint64, c_void_p
from typing import Any, ClassVar

from vitc.runtime.cuda import DEFAULT_STREAM, CudaDriver, DeviceBuffer, Event
from vitc.runtime.dtypes import DTYPES, DType

CPU, CUDA, CUDA_HOST, CUDA_MANAGED = 1, 2, 3, 13  # DLDeviceType

# (DLDataTypeCode, bits) of our element types.
_CODES = {
    "float32": (2, 32),
    "float16": (2, 16),
    "bfloat16": (4, 16),
    "int8": (0, 8),
    "float8_e4m3": (10, 8),
    "uint8": (1, 8),
    "int32": (0, 32),
    "int64": (0, 64),
}
_NAMES = {code: name for name, code in _CODES.items()}
_KINDS = {0: "int", 1: "uint", 2: "float", 4: "bfloat", 5: "complex", 6: "bool"}


class _Tensor(ctypes.Structure):
    _fields_: ClassVar = [
        ("data", c_void_p),
        ("device_type", c_int32),
        ("device_id", c_int32),
        ("ndim", c_int32),
        ("code", c_uint8),
        ("bits", c_uint8),
        ("lanes", c_uint16),
        ("shape", POINTER(c_int64)),
        ("strides", POINTER(c_int64)),
        ("byte_offset", c_uint64),
    ]


class _Managed(ctypes.Structure):
    _fields_: ClassVar = [("tensor", _Tensor), ("context", c_void_p), ("deleter", c_void_p)]


_NAME, _USED = b"dltensor", b"used_dltensor"
_new = ctypes.pythonapi.PyCapsule_New
_new.restype, _new.argtypes = ctypes.py_object, (c_void_p, ctypes.c_char_p, c_void_p)
_pointer = ctypes.pythonapi.PyCapsule_GetPointer
_pointer.restype, _pointer.argtypes = c_void_p, (ctypes.py_object, ctypes.c_char_p)
_rename = ctypes.pythonapi.PyCapsule_SetName
_rename.restype, _rename.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
# The same functions for a capsule that is being destroyed, which must not be referenced again.
_dying_valid = ctypes.PYFUNCTYPE(ctypes.c_int, c_void_p, ctypes.c_char_p)(
    ("PyCapsule_IsValid", ctypes.pythonapi)
)
_dying_pointer = ctypes.PYFUNCTYPE(c_void_p, c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
_Deleter = ctypes.CFUNCTYPE(None, c_void_p)


class Imported:
    """A tensor of another library; its memory is held while this object lives.

    Attributes:
        address: of the first element.
        device: DLPack's device type and index.
        dtype: our name of the element type, or DLPack's where we have none.
        contiguous: whether it is dense and row major.
    """

    def __init__(self, capsule: Any) -> None:
        self._managed: int = _pointer(capsule, _NAME)
        tensor = _Managed.from_address(self._managed).tensor
        rank = tensor.ndim
        self.shape = tuple(int(size) for size in tensor.shape[:rank])
        self.address: int = (tensor.data or 0) + tensor.byte_offset
        self.device = (int(tensor.device_type), int(tensor.device_id))
        self.dtype = _NAMES.get((tensor.code, tensor.bits), "")
        if tensor.lanes != 1 or not self.dtype:
            self.dtype = f"{_KINDS.get(tensor.code, 'type')}{tensor.bits}"
        strides = tuple(tensor.strides[:rank]) if tensor.strides else None
        self.contiguous = strides is None or _is_dense(self.shape, strides)
        _rename(capsule, _USED)  # the memory is ours to release from here on

    def __del__(self) -> None:
        managed = getattr(self, "_managed", 0)
        if managed and (deleter := _Managed.from_address(managed).deleter):
            self._managed = 0
            _Deleter(deleter)(managed)


def _is_dense(shape: tuple[int, ...], strides: tuple[int, ...]) -> bool:
    expected = 1
    for size, stride in zip(reversed(shape), reversed(strides), strict=True):
        if size != 1 and stride != expected:
            return False
        expected *= size
    return True


class BufferPool:
    """Memory of outputs, used again when nobody holds them any more. All its users take turns on
    the default stream.
    """

    def __init__(self, driver: CudaDriver) -> None:
        self.driver = driver
        self._free: list[DeviceBuffer] = []

    def take(self, size: int) -> DeviceBuffer:
        """A buffer of exactly this many bytes."""
        for index, buffer in enumerate(self._free):
            if buffer.size == size:
                return self._free.pop(index)
        return DeviceBuffer(self.driver, size)

    def give_back(self, buffer: DeviceBuffer) -> None:
        """Any thread may call it, also from within the garbage collector."""
        self._free.append(buffer)


class DeviceArray:
    """An output in GPU memory for whoever speaks DLPack: torch, CuPy, JAX.

    Attributes:
        shape: of the array, row major.
        dtype: name of the element type.
    """

    def __init__(self, pool: BufferPool, dtype: DType, shape: tuple[int, ...], size: int) -> None:
        self.shape = shape
        self.dtype = dtype.name
        self._pool = pool
        self._buffer = pool.take(size)
        self._elsewhere = False  # whether another stream than the default one has it

    @property
    def address(self) -> int:
        """Of the first element."""
        return self._buffer.address

    def __del__(self) -> None:
        buffer = getattr(self, "_buffer", None)
        if buffer is None:
            return
        # Another stream may still read when its owner lets go, and the default one would not wait
        # for it: such memory is freed, after all work of the GPU.
        if self._elsewhere:
            self._pool.driver.release("cuCtxSynchronize")
        else:
            self._pool.give_back(buffer)

    def __repr__(self) -> str:
        where = f"cuda:{self._pool.driver.index}"
        return f"<vitc output {self.dtype}{list(self.shape)} on {where}: use from_dlpack>"

    def __dlpack_device__(self) -> tuple[int, int]:
        return CUDA, self._pool.driver.index

    def __dlpack__(
        self,
        *,
        stream: int | None = None,
        max_version: tuple[int, int] | None = None,
        dl_device: tuple[int, int] | None = None,
        copy: bool | None = None,
    ) -> Any:
        """A capsule; `stream`, as Python's specification numbers them, waits for the contents."""
        del max_version  # what we give is older than any that is asked for
        if dl_device not in (None, self.__dlpack_device__()) or copy:
            raise BufferError("vitc gives its outputs where they are, without a copy")
        if stream not in (None, DEFAULT_STREAM):
            self._elsewhere = True
            if stream != -1:
                self._make_wait(stream)
        return _export(self)

    def _make_wait(self, stream: int | None) -> None:
        driver = self._pool.driver
        with driver.current():
            event = Event(driver)
            driver("cuEventRecord", event.handle, DEFAULT_STREAM)
            driver("cuStreamWaitEvent", stream, event.handle, 0)


# What capsules point to, with the array that owns the memory, until their consumers are done.
_exported: dict[int, tuple[_Managed, Any, DeviceArray]] = {}


def _export(array: DeviceArray) -> Any:
    shape = (c_int64 * max(len(array.shape), 1))(*array.shape)
    managed = _Managed()
    tensor = managed.tensor
    tensor.data = array.address
    tensor.device_type, tensor.device_id = array.__dlpack_device__()
    tensor.ndim, tensor.lanes = len(array.shape), 1
    tensor.code, tensor.bits = _CODES[DTYPES[array.dtype].name]
    tensor.shape = ctypes.cast(shape, POINTER(c_int64))
    managed.deleter = ctypes.cast(_forget, c_void_p)
    address = ctypes.addressof(managed)
    _exported[address] = (managed, shape, array)
    return _new(address, _NAME, ctypes.cast(_destroy, c_void_p))


@_Deleter
def _forget(managed: int) -> None:
    _exported.pop(managed, None)


@_Deleter
def _destroy(capsule: int) -> None:
    if _dying_valid(capsule, _NAME):  # nobody has taken it
        _forget(_dying_pointer(capsule, _NAME))
