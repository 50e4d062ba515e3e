"""The arguments of compile(), checked before any work is done."""

from __future__ import annotations

import os
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

from vitc.errors import InputError, StorageError
from vitc.ir.types import DType


@dataclass(frozen=True)
class CompileOptions:
    """What decides the library, checked. Fields as the arguments of `compile`."""

    batches: tuple[int, ...]
    target: str
    dtype: DType
    input_dtype: DType
    output_dtype: DType
    weights: Literal["embedded", "external"] = "embedded"
    disable: frozenset[str] = frozenset()
    dump_dir: Path | None = None
    jobs: int = 0

    @property
    def max_batch(self) -> int:
        return max(self.batches)


def checked_options(
    batch: int | Sequence[int],
    target: str | None,
    dtype: str | None,
    input_dtype: str | None,
    output_dtype: str | None,
    weights: Literal["embedded", "external"],
    disable: Collection[str],
    dump_dir: str | os.PathLike[str] | None,
    jobs: int | None,
) -> CompileOptions:
    """Checks the arguments before any work is done. Raises InputError."""
    from vitc.codegen.targets import default_target, find_target

    batches: tuple[Any, ...] = tuple(batch) if isinstance(batch, Sequence) else (batch,)
    if not batches or any(type(b) is not int or b < 1 for b in batches):
        raise InputError(f"batch is {batch!r}; it must be a number from 1 up, or several of them")
    if jobs is not None and jobs < 0:
        raise InputError(f"jobs is {jobs}; it must be a number from 1 up, or None for one per CPU")
    if weights not in ("embedded", "external"):
        raise InputError(f"weights is {weights!r}; it must be 'embedded' or 'external'")
    device = find_target(target or default_target())
    compute = _dtype("dtype", dtype, device.dtypes[0], device.dtypes)
    boundary = device.io_dtype(compute)
    allowed = tuple(dict.fromkeys((boundary, compute, DType.FLOAT32)))
    return CompileOptions(
        tuple(sorted(set(batches))),
        device.name,
        compute,
        _dtype("input_dtype", input_dtype, boundary, allowed),
        _dtype("output_dtype", output_dtype, boundary, allowed),
        weights,
        _disabled(disable),
        Path(dump_dir) if dump_dir is not None else None,
        jobs or 0,
    )


def _disabled(names: Collection[str]) -> frozenset[str]:
    from vitc.passes.pipeline import known_names

    known = known_names()
    wanted = frozenset((names,) if isinstance(names, str) else names)
    unknown = sorted(wanted.difference(known))
    if unknown:
        close = [name for word in unknown for name in get_close_matches(word, known)]
        raise InputError(
            f"cannot disable {', '.join(map(repr, unknown))}: no such pass or rule",
            hint=f"known: {', '.join(close or known)}",
        )
    return wanted


def check_model(
    model: Any, image_size: int | tuple[int, int] | None = None, name: str | None = None
) -> None:
    """Raises InputError for what is no model at all, no size or no name."""
    if not isinstance(model, (str, os.PathLike)) and (
        isinstance(model, type) or not hasattr(model, "state_dict")
    ):
        what = f"the class {model.__name__}" if isinstance(model, type) else f"{model!r:.60}"
        raise InputError(
            f"{what} is no model", hint="pass an nn.Module, a timm name or an ExportedProgram"
        )
    size: int | Sequence[Any] | None = image_size
    sides: tuple[Any, ...] = tuple(size) if isinstance(size, Sequence) else (size, size)
    if size is not None and (len(sides) != 2 or any(type(n) is not int or n < 1 for n in sides)):
        raise InputError(f"image_size is {size!r}; it must be pixels, or (height, width)")
    if name is not None and re.fullmatch(r"[A-Za-z_][\w.-]*", name, re.ASCII) is None:
        raise InputError(
            f"name is {name!r}", hint="a name has letters, digits, '_', '-' and '.', as vit_b16"
        )


def check_output(path: Path) -> None:
    """Raises where the library could not be written whatever it holds; creates nothing."""
    if path.is_dir():
        raise InputError(f"output '{path}' is a folder", hint=f"for example '{path / 'model.so'}'")
    # Folders that are missing are made at the end.
    folder = next(folder for folder in path.absolute().parents if folder.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        why = "no permission" if folder.is_dir() else "it is no folder"
        raise StorageError(
            f"cannot write '{path}': '{folder}': {why}", hint="choose another folder"
        )


def _dtype(argument: str, name: str | None, default: DType, allowed: Sequence[DType]) -> DType:
    known = ", ".join(dtype.value for dtype in allowed)
    if name is None:
        return default
    try:
        dtype = DType.parse(str(name).removeprefix("torch."))
    except ValueError as error:
        raise InputError(f"{argument}: {error}", hint=f"this target takes: {known}") from None
    if dtype not in allowed:
        raise InputError(
            f"{argument} {dtype.value} is not for this target", hint=f"it takes: {known}"
        )
    return dtype
