"""What the importers of ATen calls are written with: a registry and a builder.

An importer turns one call of an exported graph into IR nodes:

    @aten("linear.default")
    def linear(b: Context, x: Value, weight: Value, bias: Value | None = None) -> Value: ...

It is called with the call's own arguments, tensors as Values and shapes with their symbolic batch,
and returns a Value, a sequence of them for a call with several results, or None for a call that
computes nothing. `Unsupported` says which argument it cannot follow. None of it needs torch.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from vitc.ir.builder import Builder, Value
from vitc.ir.types import Batch, Dim, Shape, TensorType

Importer = Callable[..., Any]
ImporterT = TypeVar("ImporterT", bound=Importer)

IMPORTERS: dict[str, Importer] = {}


class Unsupported(ValueError):
    """The call is one that vitc cannot compile; the message says what about it."""


@dataclass(frozen=True)
class Filled:
    """x [..., H, W] surrounded by a value other than zero; a maximum over windows understands it.

    pads: (top, bottom, left, right).
    """

    x: Value
    pads: tuple[int, int, int, int]
    fill: float


class Context(Builder):
    """The builder that importers write with.

    results: the types that the exported graph gives the results of the call being imported.
    """

    def __init__(self, taken: Iterable[str] = ()) -> None:
        super().__init__(taken)
        self.results: tuple[TensorType, ...] = ()

    @property
    def shape(self) -> Shape:
        """Shape of the call's first result."""
        return self.results[0].shape

    @contextmanager
    def part(self, suffix: str) -> Generator[None]:
        """What is emitted inside is named after a part of the call; its result keeps `hint`."""
        hint = self.hint
        self.hint = f"{hint}.{suffix}" if hint else suffix
        try:
            yield
        finally:
            self.hint = hint

    def channels_last(self, x: Value) -> Value:
        """x [B, C, ...] as [B, ..., C]."""
        with self.part("last"):
            return self.permute(x, (0, *range(2, len(x.shape)), 1))

    def channels_first(self, x: Value) -> Value:
        """x [B, ..., C] as [B, C, ...]."""
        with self.part("first"):
            return self.permute(x, (0, len(x.shape) - 1, *range(1, len(x.shape) - 1)))


def aten(*targets: str) -> Callable[[ImporterT], ImporterT]:
    """Registers an importer for overloads such as "linear.default"."""

    def register(importer: ImporterT) -> ImporterT:
        for target in targets:
            if target in IMPORTERS:
                raise ValueError(f"ATen overload '{target}' has two importers")
            IMPORTERS[target] = importer
        return importer

    return register


def axis_of(axis: int, rank: int) -> int:
    """The axis counted from the front. Raises Unsupported when there is none."""
    if not -rank <= axis < rank:
        raise Unsupported(f"axis {axis} of {rank}")
    return axis % rank


def size_of(dim: Dim, what: str) -> int:
    """The fixed size. Raises Unsupported for the batch."""
    if isinstance(dim, Batch):
        raise Unsupported(f"{what} depends on the batch")
    return dim


def pair(value: int | Sequence[int]) -> tuple[int, int]:
    """A height and a width from one number, a list of one, or a list of two."""
    values = [value] if isinstance(value, int) else list(value)
    return (values[0], values[-1])


def refuse(condition: bool, reason: str) -> None:
    """Raises Unsupported with `reason` when `condition` holds."""
    if condition:
        raise Unsupported(reason)
