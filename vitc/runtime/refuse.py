"""How tensors are refused: which one, what is wrong with it, and what to pass instead."""

from __future__ import annotations

from typing import Any

from vitc.errors import InputError
from vitc.runtime.library import PortInfo
from vitc.runtime.place import Place


def not_a_tensor(value: Any) -> InputError:
    """For what is no tensor of any kind."""
    return InputError(
        f"cannot run on a {type(value).__module__}.{type(value).__qualname__}",
        hint="pass a torch tensor, a numpy array or an object with __dlpack__",
    )


def wrong_dtype(port: PortInfo, given: str, hint: str) -> InputError:
    """For another element type."""
    message = f"{port.kind} '{port.name}' is {given}, the library was compiled for {port.dtype}"
    return InputError(message, hint=hint)


def wrong_device(port: PortInfo, given: str, place: Place, way_out: str) -> InputError:
    """For memory that the library does not reach."""
    message = f"{port.kind} '{port.name}' is on {given}, the library runs on {place}"
    return InputError(message, hint=f"pass {way_out}")


def not_contiguous(port: PortInfo, shape: tuple[int, ...], way_out: str) -> InputError:
    """For a view that is not dense and row major."""
    message = f"{port.kind} '{port.name}' of shape {list(shape)} is not contiguous (row major)"
    return InputError(message, hint=f"pass {way_out}")
