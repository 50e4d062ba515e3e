"""Module: the handle of a loaded library."""

from __future__ import annotations

import os
import threading
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from vitc.errors import LoadError, VitcError
from vitc.runtime.artifact import Footer, external_weights, write_library
from vitc.runtime.check import check_file, parse_manifest
from vitc.runtime.context import Context, StepProfile, destroy_in_process, thread_count
from vitc.runtime.library import Library, PortInfo
from vitc.runtime.payload import WeightArray, read_payload
from vitc.runtime.place import Place, place_of
from vitc.runtime.state import check_state, final_constants

if TYPE_CHECKING:
    from typing_extensions import Self


def load(
    path: str | os.PathLike[str],
    *,
    device: str | int | None = None,
    threads: int | None = None,
    weights: str | os.PathLike[str] | None = None,
    verify: bool = True,
) -> Module:
    """Loads a library that vitc.compile made. Needs neither torch nor timm nor a compiler.

    Args:
        path: of the `.so`.
        device: where to run: `cuda:1`, or an index; None takes the first of the kind that the
            library was compiled for.
        threads: CPU threads of each context; None means all that this process may use.
        weights: a `.safetensors` file with final constants of this library, in place of its own.
        verify: whether to compare the checksum of the weights, which reads all of them once.

    Raises:
        LoadError: the file is absent, damaged, for another machine or of another vitc.
        WeightsError: the weights belong to another model.
        DeviceError: this machine cannot run the library.
    """
    return Module.open(path, device=device, threads=threads, weights=weights, verify=verify)


class Module:
    """A compiled model, ready to run: `logits = module(images)`.

    Any thread may call it; each gets its own context, made at its first call. load_weights changes
    the weights for all of them. Close it, or use it in a `with`, to release memory early.

    Attributes:
        path: of the library.
        manifest: what the model is and how it was compiled.
        inputs, outputs: name, dtype and shape (shape[0]: maximum batch) of each.
        place: the device that it runs on.
        threads: CPU threads of each context; None means all.
    """

    def __init__(
        self,
        path: Path,
        footer: Footer,
        library: Library,
        manifest: dict[str, Any],
        place: Place,
        *,
        threads: int | None,
        override: Path | None,
    ) -> None:
        self.path = path
        self.manifest = manifest
        self.inputs: tuple[PortInfo, ...] = library.inputs
        self.outputs: tuple[PortInfo, ...] = library.outputs
        self.threads = threads
        self._footer = footer
        self._library = library
        self._model: int | None = None  # made by _handle at its first use
        self._closed = False
        self.place = place
        self._override = override
        self._replaced: dict[str, WeightArray] = {}
        self._local = threading.local()
        self._contexts: weakref.WeakSet[Context] = weakref.WeakSet()
        self._lock = threading.Lock()  # guards _contexts, _replaced and closing

    @classmethod
    def open(
        cls,
        path: str | os.PathLike[str],
        *,
        device: str | int | None = None,
        threads: int | None = None,
        weights: str | os.PathLike[str] | None = None,
        verify: bool = True,
        lazy: bool = False,
    ) -> Self:
        """As `vitc.load`, for subclasses too. lazy: the device is first needed by the first call,
        so that a library for a GPU can be made where there is none.
        """
        file = Path(path).absolute()
        other = None if weights is None else Path(weights).absolute()
        footer = check_file(file, weights=other, verify=verify)
        library = Library(file, footer.code_digest)
        manifest = parse_manifest(file, library.manifest_text, library.inputs, library.outputs)
        place = place_of(manifest["target"], device)
        module = cls(file, footer, library, manifest, place, threads=threads, override=other)
        if not lazy:
            with module._lock:
                module._handle()
        return module

    def __call__(self, *inputs: Any) -> Any:
        """Runs the model on one batch, in the calling thread's context; see Context.__call__."""
        return self._context()(*inputs)

    def profile(self, *inputs: Any, repeats: int = 20) -> list[StepProfile]:
        """Median time of each kernel on these inputs, in the order they run."""
        return self._context().profile(*inputs, repeats=repeats)

    def new_context(self, threads: int | None = None) -> Context:
        """A context of one's own, perhaps with fewer threads. Raises InputError, DeviceError."""
        count = thread_count(self.threads if threads is None else threads)
        with self._lock:
            self._check_open()
            steps = self.manifest["steps"]
            context = Context(self._library, self._handle(), count, steps, self.place)
            self._contexts.add(context)
        return context

    def load_weights(self, state_dict: Mapping[str, Any]) -> None:
        """Replaces the weights by those of a state dict of the compiled model, without recompiling.

        Runs in progress end with the weights they began with. Nothing changes when this fails.

        Args:
            state_dict: parameter name to torch tensor or numpy array.

        Raises:
            WeightsError: names are missing or unexpected or shapes differ; all are listed.
        """
        self._check_open()
        check_state(self.manifest["parameters"], state_dict)
        constants = final_constants(self.manifest, state_dict)
        with self._lock:
            self._check_open()
            self._library.set_weights(self._handle(), constants)
            self._replaced.update(constants)

    def save(self, path: str | os.PathLike[str]) -> Path:
        """Writes the library, with the weights it has now, to another place; returns that path.

        External weights are written beside it as `<stem>.safetensors`. A file already there is
        replaced at once and only when the new one is complete.

        Raises:
            StorageError: a file cannot be written.
            LoadError: the library's own file was replaced or removed after it was loaded.
        """
        target = Path(path).absolute()
        footer = check_file(self.path, weights=self._override, verify=True)
        if footer.code_digest != self._footer.code_digest:
            raise LoadError(f"'{self.path}' was replaced by another library since it was loaded")
        with self._lock:
            current = {**self._stored_weights(footer), **self._replaced}
        write_library(self.path, current, target, footer.mode)
        return target

    def close(self) -> None:
        """Releases the weights and all contexts, after waiting for calls that are running."""
        with self._lock:
            self._closed = True
            if self._model is not None:
                self._finalizer()
            contexts = list(self._contexts)
        for context in contexts:
            context.close()

    def __enter__(self) -> Module:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        takes = ", ".join(map(str, self.inputs))
        gives = ", ".join(map(str, self.outputs))
        state = ", closed" if self._closed else ""
        return (
            f"<vitc.Module {self.manifest['name']}: ({takes}) -> ({gives}), "
            f"{self.manifest['target']}, {len(self.manifest['steps'])} steps, "
            f"'{self.path}'{state}>"
        )

    def _handle(self) -> int:
        """The model on its device; the caller holds the lock. Raises DeviceError."""
        if self._model is None:
            self._model = self._library.model_create(self.place.index, self._override)
            self._finalizer = weakref.finalize(
                self, destroy_in_process, os.getpid(), self._library.model_destroy, self._model
            )
        return self._model

    def _context(self) -> Context:
        # A forked child starts anew: the threads of its parent's contexts do not exist in it.
        found: tuple[int, Context] | None = getattr(self._local, "context", None)
        if found is None or found[0] != os.getpid():
            found = (os.getpid(), self.new_context())
            self._local.context = found
        return found[1]

    def _check_open(self) -> None:
        if self._closed:
            raise VitcError(f"the module of '{self.path}' is closed", hint="load it again")

    def _stored_weights(self, footer: Footer) -> dict[str, WeightArray]:
        if self._override is not None:
            return read_payload(self._override)
        if footer.mode == "external":
            return read_payload(external_weights(self.path))
        return read_payload(self.path, offset=footer.payload_offset, size=footer.payload_bytes)
