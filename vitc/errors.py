"""The exceptions that vitc raises. Each names the thing that is wrong; `hint` says the way out."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path


class VitcError(Exception):
    """Base of all errors of vitc.

    Attributes:
        message: what is wrong.
        hint: what to do about it, or None where the message says it.
    """

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message if hint is None else f"{message}\n  hint: {hint}")
        self.message = message
        self.hint = hint


@dataclass(frozen=True)
class UnsupportedOp:
    """An operation of the model that vitc cannot compile, and where the model uses it."""

    op: str
    module_path: str
    source: str

    def __str__(self) -> str:
        return f"{self.op} in '{self.module_path}' ({self.source})"


class UnsupportedModelError(VitcError):
    """The model uses operations that vitc does not know; `ops` lists all of them."""

    def __init__(
        self, message: str, *, ops: tuple[UnsupportedOp, ...] = (), hint: str | None = None
    ) -> None:
        super().__init__("\n".join([message, *(f"  - {op}" for op in ops)]), hint=hint)
        self.ops = ops


class CompileError(VitcError):
    """A compiler or linker is missing or failed; `command` repeats it, `log` holds its output."""

    def __init__(
        self,
        message: str,
        *,
        command: str | None = None,
        log: Path | None = None,
        hint: str | None = None,
    ) -> None:
        lines = [message]
        if log is not None:
            lines.append(f"  log: {log}")
        if command is not None:
            lines.append(f"  repeat it with: {command}")
        super().__init__("\n".join(lines), hint=hint)
        self.command = command
        self.log = log


class GraphError(VitcError):
    """A graph breaks the rules of the IR; `pass_name` left it so, `repro` is the one before it."""

    def __init__(
        self,
        message: str,
        *,
        pass_name: str | None = None,
        repro: Path | None = None,
        hint: str | None = None,
    ) -> None:
        lines = [message if pass_name is None else f"after pass '{pass_name}': {message}"]
        if repro is not None:
            lines.append(f"  repro: {repro}")
        super().__init__("\n".join(lines), hint=hint)
        self.pass_name = pass_name
        self.repro = repro


class LoadError(VitcError):
    """A library cannot be loaded: absent, damaged, for another machine, or of another vitc."""


class InputError(VitcError):
    """An argument of a call is wrong: count, dtype, shape, batch, memory layout or device."""


class WeightsError(VitcError):
    """Weights are missing, unexpected, of the wrong shape, or belong to another model."""


class DeviceError(VitcError):
    """The device is absent, unsupported, out of memory, or reported an error."""


class StorageError(VitcError):
    """A file cannot be written: disk full, no permission. Nothing half-written is left behind."""
