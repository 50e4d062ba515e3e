"""A context: the workspace and threads that one caller runs a model with."""

from __future__ import annotations

import os
import threading
import weakref
from collections import namedtuple
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from vitc.errors import InputError, VitcError
from vitc.runtime.library import Library, PortInfo, TensorView
from vitc.runtime.place import Place
from vitc.runtime.tensors import Family, families_of, view_all


@dataclass(frozen=True)
class StepProfile:
    """How long one kernel of a run took.

    Attributes:
        name: of the step, as in the manifest.
        microseconds: median over the repeats.
        flops: floating-point operations of the step in the profiled batch.
        bytes: what the step must read and write in the profiled batch.
    """

    name: str
    microseconds: float
    flops: int
    bytes: int


class Context:
    """Runs a model with its own workspace and threads. Made by Module.new_context.

    Calls from several threads wait for each other; give each thread its own context instead.
    """

    def __init__(
        self,
        library: Library,
        model: int,
        threads: int,
        steps: Sequence[dict[str, Any]],
        place: Place,
    ) -> None:
        self._library = library
        self._steps = steps
        self._lock = threading.Lock()
        self._handle = library.context_create(model, threads)
        self._finalizer = weakref.finalize(
            self, destroy_in_process, os.getpid(), library.context_destroy, self._handle
        )
        self._families = families_of(place)
        self._bundle = _bundler(library.outputs)

    def __call__(self, *inputs: Any) -> Any:
        """Runs the model on one batch.

        Args:
            inputs: one contiguous tensor per input of the library, all of torch, of numpy, or of
                anything with DLPack, in the library's dtypes; shape[0] is the batch. For a GPU, of
                torch or DLPack on that GPU, or of numpy, which is copied there and back.

        Returns:
            The output, of the same kind as the first input; several as a named tuple. On a GPU it
            is ready in the order of the stream (torch: the current one; DLPack: the default one),
            for numpy when the call returns.

        Raises:
            InputError: an input is wrong; the message names it and its dimension.
        """
        return self._bundle(self.run_steps(inputs))

    def run_steps(
        self,
        inputs: Sequence[Any],
        steps: tuple[int, int] | None = None,
        outputs: Sequence[Any] | None = None,
    ) -> tuple[Any, ...]:
        """Runs the half-open range of steps on the workspace as it is; None means all.

        Args:
            outputs: tensors to write, of an earlier call; None makes new ones, whose elements are
                undefined where no step of the range writes them.

        Returns:
            The outputs in the library's order.
        """
        with self._lock:
            handle = self._live()
            family, views = view_all(self._families, self._library.inputs, inputs)
            if outputs is None:
                batch = views[0].shape[0] if views[0].shape else 0
                made = [family.empty(port, batch) for port in self._library.outputs]
                tensors = tuple(tensor for tensor, _ in made)
                out_views = tuple(view for _, view in made)
            else:
                tensors = tuple(outputs)
                out_views = self._reused(family, tensors)
            self._library.run(handle, views, out_views, family.stream, steps)
            return family.finish(tensors)

    def read(self, offset: int, size: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
        """A copy of bytes of the workspace; the manifest's "workspace" says what lies where."""
        with self._lock:
            return self._library.read(self._live(), offset, size)

    def profile(self, *inputs: Any, repeats: int = 20) -> list[StepProfile]:
        """Times each step of a run on these inputs."""
        with self._lock:
            handle = self._live()
            family, views = view_all(self._families, self._library.inputs, inputs)
            batch = views[0].shape[0] if views[0].shape else 0
            made = [family.empty(port, batch) for port in self._library.outputs]
            out_views = [view for _, view in made]
            times = self._library.profile(
                handle, views, out_views, family.stream, repeats, len(self._steps)
            )
            family.finish(tuple(tensor for tensor, _ in made))
        return [
            StepProfile(
                name=step["name"],
                microseconds=time,
                flops=int(step.get("flops", 0)) * batch,
                bytes=moved_bytes(step, batch),
            )
            for step, time in zip(self._steps, times, strict=True)
        ]

    def close(self) -> None:
        """Releases workspace and threads, after waiting for a call that is running."""
        with self._lock:
            self._finalizer()
            self._families.close()

    def _reused(self, family: Family, outputs: tuple[Any, ...]) -> tuple[TensorView, ...]:
        """The memory of given outputs, checked as inputs are: same kind, dtype, contiguous."""
        ports = self._library.outputs
        if len(outputs) != len(ports):
            view_all(self._families, ports, outputs)
        kind = type(family)
        for port, value in zip(ports, outputs, strict=True):
            if type(self._families.of(value)) is not kind:
                given = type(value).__qualname__
                raise InputError(f"output '{port.name}' is a {given}: pass what a call returned")
        return tuple(family.reuse(p, value) for p, value in zip(ports, outputs, strict=True))

    def _live(self) -> int:
        if not self._finalizer.alive:
            raise VitcError("the context is closed", hint="make one with module.new_context()")
        return self._handle


def destroy_in_process(pid: int, destroy: Callable[[int], None], handle: int) -> None:
    """Destroys a handle unless this is a fork of the process it belongs to.

    A forked child has no copy of the threads that the destructor would join.
    """
    if os.getpid() == pid:
        destroy(handle)


def moved_bytes(step: Mapping[str, Any], batch: int) -> int:
    """Bytes of a step's operands; its constants are read once whatever the batch."""
    constant = int(step.get("constant_bytes", 0))
    return (int(step.get("bytes", 0)) - constant) * batch + constant


def _bundler(outputs: Sequence[PortInfo]) -> Callable[[tuple[Any, ...]], Any]:
    if len(outputs) == 1:
        return lambda tensors: tensors[0]
    # rename: a name that is no identifier becomes _0, _1, ...
    names = [port.name for port in outputs]
    bundle: Any = namedtuple("Outputs", names, rename=True)  # pyright: ignore[reportUntypedNamedTuple]
    return lambda tensors: bundle(*tensors)


def thread_count(threads: int | None) -> int:
    """The C ABI's thread count of the Python API's: None means all. Raises InputError."""
    if threads is None:
        return 0
    if threads < 1:
        raise InputError(f"threads is {threads}", hint="pass 1 or more, or None for all")
    return threads
