"""Tensors of torch, numpy and whatever speaks DLPack, in and out without copies.

Shapes are left to the library, which names the dimension that is wrong. Here is checked what the
library cannot see: where the memory is, how it is laid out, and its element type. torch is never
imported, only used when the caller has handed in a tensor of it.
"""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence
from typing import Any, Protocol, cast

import numpy as np

from vitc.errors import InputError, WeightsError
from vitc.runtime.dtypes import DType
from vitc.runtime.library import PortInfo, TensorView
from vitc.runtime.place import Place
from vitc.runtime.refuse import not_a_tensor, not_contiguous, wrong_device, wrong_dtype

Array = np.ndarray[Any, np.dtype[Any]]

# https://dmlc.github.io/dlpack/latest/c_api.html, DLDeviceType
_DLPACK_CPU = 1
DLPACK_DEVICES = {
    2: "a CUDA device",
    3: "CUDA host memory",
    4: "an OpenCL device",
    7: "a Vulkan device",
    8: "a Metal device",
    10: "a ROCm device",
    11: "ROCm host memory",
    14: "a oneAPI device",
}
# Names that others give to our element types.
_SYNONYMS = {"float8_e4m3fn": "float8_e4m3"}


class Family(Protocol):
    """One library of tensors, for one call: what comes in from it goes out as it.

    Attributes:
        stream: the one to run on, as vitc_run takes it; 0 on the CPU.
    """

    stream: int

    def view(self, port: PortInfo, value: Any) -> TensorView:
        """The memory of an input. Raises InputError, with the way out, where it cannot be used."""
        ...

    def reuse(self, port: PortInfo, value: Any) -> TensorView:
        """The memory of an output of an earlier call, with what it holds. Raises InputError."""
        ...

    def empty(self, port: PortInfo, batch: int) -> tuple[Any, TensorView]:
        """A new tensor for an output and its memory."""
        ...

    def finish(self, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """After the run: what the caller gets for the tensors that empty() and reuse() saw."""
        ...


class Families(Protocol):
    """The families whose tensors a library can run on, where it is."""

    def of(self, value: Any) -> Family:
        """The family of a tensor. Raises InputError where it is no tensor."""
        ...

    def close(self) -> None:
        """Releases what was kept for the next call."""
        ...


class HostMemory:
    """A family whose tensors are used where they are, by the time the library returns."""

    stream: int = 0

    def view(self, port: PortInfo, value: Any) -> TensorView:
        raise NotImplementedError

    def reuse(self, port: PortInfo, value: Any) -> TensorView:
        return self.view(port, value)

    def finish(self, outputs: tuple[Any, ...]) -> tuple[Any, ...]:
        return outputs


class NumpyFamily(HostMemory):
    """numpy arrays, also those with the element types of ml_dtypes."""

    def __init__(self) -> None:
        self._foreign: dict[str, np.dtype[Any]] = {}

    def view(self, port: PortInfo, value: Any) -> TensorView:
        array: Array = value
        name = _canonical(_dtype_name(array))
        if name != port.dtype or not array.dtype.isnative:
            given = name if array.dtype.isnative else f"{name} in foreign byte order"
            if port.element.exact:
                hint = f"pass x.astype(np.{port.dtype})"
            else:
                hint = (
                    f"numpy has no {port.dtype}: pass a torch tensor, or compile with "
                    "input_dtype='float32'"
                )
            raise wrong_dtype(port, given, hint)
        if not array.flags.c_contiguous:
            raise not_contiguous(port, array.shape, "np.ascontiguousarray(x)")
        self._foreign[name] = array.dtype
        return TensorView(array.ctypes.data, port.element, array.shape)

    def empty(self, port: PortInfo, batch: int) -> tuple[Array, TensorView]:
        dtype = port.element.storage if port.element.exact else self._foreign.get(port.dtype)
        if dtype is None:
            raise InputError(
                f"{port.kind} '{port.name}' is {port.dtype}, which numpy does not have",
                hint="pass a torch tensor, or compile with output_dtype='float32'",
            )
        array = np.empty((batch, *port.shape[1:]), dtype)
        return array, TensorView(array.ctypes.data, port.element, array.shape)


class TorchFamily(HostMemory):
    """torch tensors on the CPU, or on a GPU, where they are used on torch's current stream."""

    def __init__(self, torch: Any, place: Place) -> None:
        self._torch = torch
        self._place = place

    def view(self, port: PortInfo, value: Any) -> TensorView:
        where = value.device
        if where.type != self._place.kind or (where.index or 0) != self._place.index:
            plain = f"x.{self._place.kind}()"
            move = f"x.to('{self._place.torch_name}')" if self._place.index else plain
            raise wrong_device(port, str(where), self._place, move)
        if where.type == "cuda":
            self.stream = int(self._torch.cuda.current_stream(where).cuda_stream)
        if value.layout != self._torch.strided:
            raise InputError(
                f"{port.kind} '{port.name}' has layout {value.layout}", hint="pass x.to_dense()"
            )
        if value.requires_grad and self._torch.is_grad_enabled():
            raise InputError(
                f"{port.kind} '{port.name}' requires a gradient, which a library cannot compute",
                hint="pass x.detach(), or call under torch.no_grad()",
            )
        name = _canonical(str(value.dtype).removeprefix("torch."))
        if name != port.dtype:
            raise wrong_dtype(port, name, f"pass x.to({self._dtype(port.element)})")
        if not value.is_contiguous():
            raise not_contiguous(port, tuple(value.shape), "x.contiguous()")
        if value.is_neg():
            raise InputError(
                f"{port.kind} '{port.name}' is a lazily negated view", hint="pass x.resolve_neg()"
            )
        return TensorView(value.data_ptr(), port.element, tuple(value.shape))

    def empty(self, port: PortInfo, batch: int) -> tuple[Any, TensorView]:
        shape = (batch, *port.shape[1:])
        tensor = self._torch.empty(
            shape, dtype=self._dtype(port.element), device=self._place.torch_name
        )
        return tensor, TensorView(tensor.data_ptr(), port.element, shape)

    def _dtype(self, dtype: DType) -> Any:
        names = {ours: theirs for theirs, ours in _SYNONYMS.items()}
        return getattr(self._torch, names.get(dtype.name, dtype.name))


class DlpackFamily(HostMemory):
    """Objects with __dlpack__; outputs are made by the from_dlpack of where they come from."""

    def __init__(self, first: Any) -> None:
        self._numpy = NumpyFamily()
        self._convert = from_dlpack_of(first)
        self._alive: list[Array] = []

    def view(self, port: PortInfo, value: Any) -> TensorView:
        kind = int(value.__dlpack_device__()[0])
        if kind != _DLPACK_CPU:
            where = DLPACK_DEVICES.get(kind, f"DLPack device {kind}")
            raise wrong_device(port, where, Place("cpu"), "a copy in host memory")
        try:
            array = np.from_dlpack(value)
        except (BufferError, RuntimeError, TypeError, ValueError) as error:
            raise InputError(
                f"{port.kind} '{port.name}' does not pass through DLPack: {error}",
                hint="pass a numpy array or a torch tensor",
            ) from error
        self._alive.append(array)
        return self._numpy.view(port, array)

    def empty(self, port: PortInfo, batch: int) -> tuple[Any, TensorView]:
        array, view = self._numpy.empty(port, batch)
        return self._convert(array), view


class HostFamilies:
    """The families of a library that runs on the CPU."""

    def of(self, value: Any) -> Family:
        if isinstance(value, np.ndarray):
            return NumpyFamily()
        torch = sys.modules.get("torch")
        if torch is not None and isinstance(value, torch.Tensor):
            return TorchFamily(torch, Place("cpu"))
        if hasattr(value, "__dlpack__") and hasattr(value, "__dlpack_device__"):
            return DlpackFamily(value)
        raise not_a_tensor(value)

    def close(self) -> None:
        """Nothing is kept."""


def from_dlpack_of(value: Any) -> Any:
    """The from_dlpack of the library that a DLPack object comes from, or numpy's."""
    # The array API's way first; older libraries have the function in their top module.
    if hasattr(value, "__array_namespace__"):
        return value.__array_namespace__().from_dlpack
    root = importlib.import_module(type(value).__module__.partition(".")[0])
    return getattr(root, "from_dlpack", np.from_dlpack)


def families_of(place: Place) -> Families:
    """The families of a context of a library that runs there."""
    if place.kind == "cpu":
        return HostFamilies()
    # Imported here: the CPU does without it.
    from vitc.runtime.cuda_tensors import CudaFamilies

    return CudaFamilies(place)


def view_all(
    families: Families, ports: Sequence[PortInfo], values: Sequence[Any]
) -> tuple[Family, tuple[TensorView, ...]]:
    """The family of the first tensor and the memory of all.

    The caller keeps `values` and the family alive while the memory is in use.
    """
    if len(values) != len(ports):
        kind, names = ports[0].kind, ", ".join(port.name for port in ports)
        given = f"{len(values)} {kind}{'' if len(values) == 1 else 's'} given"
        raise InputError(f"{given}, the library has {len(ports)}: {names}")
    known: dict[type[Any], Family] = {}
    views: list[TensorView] = []
    for port, value in zip(ports, values, strict=True):
        family = families.of(value)
        views.append(known.setdefault(type(family), family).view(port, value))
    if len({family.stream for family in known.values()}) > 1:
        kinds = ", ".join(sorted({type(value).__qualname__ for value in values}))
        raise InputError(f"on a GPU all inputs must be of one kind, not {kinds}")
    return next(iter(known.values())), tuple(views)


def to_numpy(name: str, value: Any) -> Array:
    """A state-dict tensor as an array; bfloat16 and float8 become float32, which loses nothing.

    Raises WeightsError where it is neither of torch nor of numpy.
    """
    torch = sys.modules.get("torch")
    if torch is not None and isinstance(value, torch.Tensor):
        tensor: Any = value.detach().cpu()
        dtype = str(tensor.dtype).removeprefix("torch.")
        return (tensor.float() if dtype.startswith(("bfloat", "float8")) else tensor).numpy()
    if isinstance(value, np.ndarray):
        array = cast(Array, value)
        inexact = _dtype_name(array) in ("bfloat16", *_SYNONYMS)
        return array.astype(np.float32) if inexact else array
    raise WeightsError(
        f"'{name}' is a {type(value).__qualname__}", hint="pass torch tensors or numpy arrays"
    )


def _dtype_name(array: Array) -> str:
    dtype: Any = array.dtype
    return str(dtype.name)


def _canonical(name: str) -> str:
    return _SYNONYMS.get(name, name)
