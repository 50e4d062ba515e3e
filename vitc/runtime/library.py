"""ctypes binding of the C ABI: one Python function for each of vitc.h, errors as exceptions."""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Mapping, Sequence
from ctypes import POINTER, byref, c_char_p, c_float, c_int32, c_int64, c_uint64, c_void_p
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from vitc.errors import DeviceError, InputError, LoadError, VitcError, WeightsError
from vitc.runtime.dtypes import BY_CODE, DTYPES, DType
from vitc.runtime.payload import WeightArray

ABI_VERSION = 1
MAX_RANK = 8

_ERRORS: dict[int, type[VitcError]] = {
    1: InputError,  # VITC_INVALID_ARGUMENT
    2: DeviceError,  # VITC_OUT_OF_MEMORY
    3: WeightsError,  # VITC_BAD_WEIGHTS
    4: DeviceError,  # VITC_UNSUPPORTED_DEVICE
    5: DeviceError,  # VITC_DEVICE_ERROR
}


class _Tensor(ctypes.Structure):
    _fields_: ClassVar = [
        ("data", c_void_p),
        ("dtype", c_int32),
        ("rank", c_int32),
        ("shape", c_int64 * MAX_RANK),
    ]


class _Weight(ctypes.Structure):
    _fields_: ClassVar = [("name", c_char_p), ("data", c_void_p), ("bytes", c_uint64)]


_TENSORS = POINTER(_Tensor)
_CALL = (c_void_p, _TENSORS, c_int32, _TENSORS, c_int32, c_void_p)
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "vitc_abi_version": (c_int32, ()),
    "vitc_last_error": (c_char_p, ()),
    "vitc_manifest": (c_char_p, ()),
    "vitc_input_count": (c_int32, ()),
    "vitc_output_count": (c_int32, ()),
    "vitc_input_info": (c_int32, (c_int32, POINTER(c_char_p), _TENSORS)),
    "vitc_output_info": (c_int32, (c_int32, POINTER(c_char_p), _TENSORS)),
    "vitc_model_create": (c_int32, (c_int32, c_char_p, POINTER(c_void_p))),
    "vitc_model_destroy": (c_int32, (c_void_p,)),
    "vitc_model_set_weights": (c_int32, (c_void_p, POINTER(_Weight), c_int32)),
    "vitc_context_create": (c_int32, (c_void_p, c_int32, POINTER(c_void_p))),
    "vitc_context_destroy": (c_int32, (c_void_p,)),
    "vitc_run": (c_int32, _CALL),
    "vitc_run_steps": (c_int32, (*_CALL, c_int32, c_int32)),
    "vitc_read": (c_int32, (c_void_p, c_uint64, c_void_p, c_uint64)),
    "vitc_profile": (c_int32, (*_CALL, c_int32, POINTER(c_float), c_int32)),
}


@dataclass(frozen=True)
class PortInfo:
    """An input or output of a library (`kind`); shape[0] is the maximum batch."""

    kind: Literal["input", "output"]
    name: str
    dtype: str
    shape: tuple[int, ...]

    @property
    def element(self) -> DType:
        """What is known of the dtype."""
        return DTYPES[self.dtype]

    def __str__(self) -> str:
        dims = ", ".join([f"1..{self.shape[0]}", *map(str, self.shape[1:])])
        return f"{self.name}: {self.dtype}[{dims}]"


@dataclass(frozen=True)
class TensorView:
    """Memory of a dense row-major tensor; whoever makes one keeps the memory alive."""

    pointer: int
    dtype: DType
    shape: tuple[int, ...]


class Library:
    """An open library. Its functions take handles (model, context) as integers.

    The library stays mapped for the life of the process, as all that ctypes opens.

    Args:
        path: of the library.
        code_digest: Footer.code_digest, which tells the file from others at the same path.

    Raises:
        LoadError: the system's loader refuses the file, or it has another ABI version.
    """

    def __init__(self, path: Path, code_digest: bytes) -> None:
        try:
            self._c = ctypes.CDLL(_fresh_name(path, code_digest))
        except OSError as error:
            raise LoadError(
                f"the system's loader refuses '{path}': {error}",
                hint="a library it needs is missing or older than where the model was compiled",
            ) from error
        version = self._bind("vitc_abi_version", path)()
        if version != ABI_VERSION:
            raise LoadError(
                f"'{path}' has ABI version {version}; this vitc runs version {ABI_VERSION}",
                hint="use the vitc that compiled it, or compile the model again",
            )
        self._f = {name: self._bind(name, path) for name in _SIGNATURES}
        self.manifest_text: str = self._f["vitc_manifest"]().decode(errors="replace")
        self.inputs = self._ports("input")
        self.outputs = self._ports("output")

    def _bind(self, name: str, path: Path) -> Any:
        try:
            function = getattr(self._c, name)
        except AttributeError as error:
            raise LoadError(f"'{path}' is not a library of vitc: it lacks {name}()") from error
        function.restype, function.argtypes = _SIGNATURES[name]
        return function

    def _call(self, name: str, *args: Any) -> None:
        status = self._f[name](*args)
        if status:
            text = self._f["vitc_last_error"]().decode(errors="replace")
            raise _ERRORS.get(status, VitcError)(text.removeprefix(f"{name}: "))

    def _ports(self, kind: Literal["input", "output"]) -> tuple[PortInfo, ...]:
        ports: list[PortInfo] = []
        for index in range(self._f[f"vitc_{kind}_count"]()):
            name, tensor = c_char_p(), _Tensor()
            self._call(f"vitc_{kind}_info", index, byref(name), byref(tensor))
            shape = tuple(tensor.shape[: tensor.rank])
            text = (name.value or b"").decode()
            ports.append(PortInfo(kind, text, BY_CODE[tensor.dtype].name, shape))
        return tuple(ports)

    def model_create(self, device: int, weights: Path | None) -> int:
        """Handle of a new model. Raises WeightsError, DeviceError."""
        handle = c_void_p()
        path = None if weights is None else os.fsencode(weights)
        self._call("vitc_model_create", device, path, byref(handle))
        return handle.value or 0

    def model_destroy(self, model: int) -> None:
        """Releases a model; contexts that are still alive keep what they need."""
        self._call("vitc_model_destroy", model)

    def set_weights(self, model: int, weights: Mapping[str, WeightArray]) -> None:
        """Copies final constants into the model, all or none. Raises WeightsError, DeviceError."""
        # `arrays` keeps temporaries alive until the library has copied them.
        arrays = {name: np.ascontiguousarray(weight.data) for name, weight in weights.items()}
        table = (_Weight * len(arrays))()
        for entry, (name, array) in zip(table, arrays.items(), strict=True):
            entry.name, entry.data, entry.bytes = name.encode(), array.ctypes.data, array.nbytes
        self._call("vitc_model_set_weights", model, table, len(arrays))

    def context_create(self, model: int, threads: int) -> int:
        """Handle of a new context. Raises InputError, DeviceError."""
        handle = c_void_p()
        self._call("vitc_context_create", model, threads, byref(handle))
        return handle.value or 0

    def context_destroy(self, context: int) -> None:
        """Releases a context."""
        self._call("vitc_context_destroy", context)

    def run(
        self,
        context: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        stream: int = 0,
        steps: tuple[int, int] | None = None,
    ) -> None:
        """Runs all steps, or those of the half-open range. Raises InputError, VitcError."""
        call = _arguments(context, inputs, outputs, stream)
        if steps is None:
            self._call("vitc_run", *call)
        else:
            self._call("vitc_run_steps", *call, *steps)

    def read(self, context: int, offset: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A copy of workspace bytes. Raises InputError where the range is not in the workspace."""
        data = np.empty(size, np.uint8)
        self._call("vitc_read", context, offset, data.ctypes.data, size)
        return data

    def profile(
        self,
        context: int,
        inputs: Sequence[TensorView],
        outputs: Sequence[TensorView],
        stream: int,
        repeats: int,
        step_count: int,
    ) -> list[float]:
        """Median microseconds of each step."""
        times = (c_float * step_count)()
        call = _arguments(context, inputs, outputs, stream)
        self._call("vitc_profile", *call, repeats, times, step_count)
        return list(times)


def _arguments(
    context: int, inputs: Sequence[TensorView], outputs: Sequence[TensorView], stream: int
) -> tuple[Any, ...]:
    return context, _pack(inputs), len(inputs), _pack(outputs), len(outputs), stream or None


def _pack(views: Sequence[TensorView]) -> Any:
    table = (_Tensor * len(views))()
    for entry, view in zip(table, views, strict=True):
        entry.data, entry.dtype, entry.rank = view.pointer, view.dtype.code, len(view.shape)
        # A rank beyond the struct is refused by the library, which looks at the rank first.
        entry.shape[: min(len(view.shape), MAX_RANK)] = view.shape[:MAX_RANK]
    return table


_opened: dict[str, list[tuple[int, int, bytes]]] = {}
_opened_lock = threading.Lock()


def _fresh_name(path: Path, code_digest: bytes) -> str:
    """A spelling of the path under which the system's loader opens the file that is there now.

    dlopen returns the library that is already open under the same name even when the file has been
    replaced since (compiled again to the same path). A name with more "./" is another name.
    """
    path = path.absolute()
    status = path.stat()
    identity = (status.st_dev, status.st_ino, code_digest)
    with _opened_lock:
        known = _opened.setdefault(str(path), [])
        if identity not in known:
            if any(seen[:2] == identity[:2] for seen in known):
                raise LoadError(
                    f"'{path}' was overwritten while this process had it loaded",
                    hint="start a new process; replace a library by renaming over it, not in place",
                )
            known.append(identity)
        return str(path.parent) + "/" + "./" * known.index(identity) + path.name
