"""The op interface and the registry.

An op is one frozen dataclass in `vitc/ops/`: its fields are the attributes, `infer` is the only
source of its result types, and `reference` is its meaning, in numpy on float64 arrays.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

from numpy.typing import NDArray

from vitc.ir.types import TensorType

Array = NDArray[Any]


class TypeMismatch(ValueError):
    """An op's operands do not fit; the message says which and why."""


@dataclass(frozen=True)
class Op:
    """Base of all ops. Subclasses are registered by `@register` and add their attributes."""

    name: ClassVar[str] = ""

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        """Result types. Raises TypeMismatch."""
        raise TypeMismatch(f"{self.name} has no type rule")

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        """Results for float64 operands at the given batch."""
        raise TypeMismatch(f"{self.name} has no reference meaning")

    def flops(self, types: Sequence[TensorType], results: Sequence[TensorType]) -> int:
        """Floating-point operations per image; a multiply-add counts two."""
        return 0


OPS: dict[str, type[Op]] = {}
OpT = TypeVar("OpT", bound=type[Op])


def register(op: OpT) -> OpT:
    """Class decorator: makes the op known to the parser and the tests."""
    if op.name in OPS:
        raise ValueError(f"op '{op.name}' is registered twice")
    OPS[op.name] = op
    return op


def require(condition: bool, message: str) -> None:
    """Raises TypeMismatch with `message` unless `condition` holds."""
    if not condition:
        raise TypeMismatch(message)
