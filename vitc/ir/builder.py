"""Builds nodes: what the frontend and the rewrite rules write with."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from vitc.ir.graph import Node
from vitc.ir.index_map import (
    Expand,
    IndexMap,
    Pad,
    Permute,
    Reshape,
    Roll,
    Slice,
    View,
)
from vitc.ir.op import Array, Op, require
from vitc.ir.types import Dim, Shape, TensorType
from vitc.ops import Concat, Linear, Literal, Move, Pointwise, Step
from vitc.ops.fused import BINARY

_NUMBERED = re.compile(r"-\d+$")


@dataclass(frozen=True)
class Value:
    """A named value with its type."""

    name: str
    type: TensorType

    @property
    def shape(self) -> Shape:
        return self.type.shape


class Builder:
    """Appends typed nodes with fresh names.

    taken: names that exist already. `loc` and `hint` apply to the nodes emitted next: a node's
    results are called after `hint`, with a number when that is taken, or always when `numbered`:
    then no plain name, which users know from the imported graph, ever comes to mean another value.
    """

    def __init__(self, taken: Iterable[str] = (), *, numbered: bool = False) -> None:
        self.nodes: list[Node] = []
        self.taken = set(taken)
        self.numbered = numbered
        self.types: dict[str, TensorType] = {}  # of the values made here
        self.loc = ""
        self.hint = ""
        self._numbers: dict[str, int] = {}

    def fresh(self, hint: str) -> str:
        """An unused name made of `hint`, which may be such a name itself: "x", "x-2", "x-3"."""
        base = _NUMBERED.sub("", hint)
        name = base
        while name in self.taken or (self.numbered and name == base):
            number = self._numbers[base] = self._numbers.get(base, 1) + 1
            name = f"{base}-{number}"
        self.taken.add(name)
        return name

    def emit_all(self, op: Op, *inputs: Value) -> tuple[Value, ...]:
        """Applies `op`. Raises TypeMismatch when the operands do not fit."""
        types = op.infer(*(value.type for value in inputs))
        hint = self.hint or op.name
        names = [self.fresh(hint if i == 0 else f"{hint}.stats") for i in range(len(types))]
        self.nodes.append(Node(op, tuple(v.name for v in inputs), tuple(names), self.loc))
        self.types.update(zip(names, types, strict=True))
        return tuple(Value(name, type_) for name, type_ in zip(names, types, strict=True))

    def emit(self, op: Op, *inputs: Value) -> Value:
        """Applies an op with one result."""
        return self.emit_all(op, *inputs)[0]

    # Movement. Consecutive views on one value become separate moves; `compose_moves` merges them.

    def view(self, x: Value, *views: View) -> Value:
        return self.emit(Move(IndexMap(x.shape, views)), x)

    def reshape(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if tuple(shape) == x.shape else self.view(x, Reshape(tuple(shape)))

    def permute(self, x: Value, axes: Sequence[int]) -> Value:
        rank = len(x.shape)
        return self.view(x, Permute(tuple(axis % rank for axis in axes)))

    def slice(self, x: Value, axis: int, start: int, stop: int, step: int = 1) -> Value:
        return self.view(x, Slice(axis % len(x.shape), start, stop, step))

    def pad(self, x: Value, axis: int, before: int, after: int) -> Value:
        return self.view(x, Pad(axis % len(x.shape), before, after))

    def roll(self, x: Value, axis: int, shift: int) -> Value:
        return self.view(x, Roll(axis % len(x.shape), shift))

    def expand(self, x: Value, shape: Sequence[Dim]) -> Value:
        return x if tuple(shape) == x.shape else self.view(x, Expand(tuple(shape)))

    def concat(self, parts: Sequence[Value], axis: int) -> Value:
        return (
            parts[0] if len(parts) == 1 else self.emit(Concat(axis % len(parts[0].shape)), *parts)
        )

    # Arithmetic.

    def literal(self, array: Array) -> Value:
        return self.emit(Literal.of(array))

    def unary(self, x: Value, *steps: Step | str) -> Value:
        """Pointwise steps without operands: `unary(x, "exp", Step("scale", None, (2.0,)))`."""
        made = tuple(Step(step) if isinstance(step, str) else step for step in steps)
        return self.emit(Pointwise(made), x)

    def scale(self, x: Value, factor: float) -> Value:
        return self.unary(x, Step("scale", None, (float(factor),)))

    def shift(self, x: Value, amount: float) -> Value:
        return self.unary(x, Step("shift", None, (float(amount),)))

    def binary(self, kind: str, x: Value, other: Value) -> Value:
        """x (kind) other with broadcasting; kind is one of add, sub, mul, div, maximum, ..."""
        require(kind in BINARY, f"'{kind}' is not a binary step")
        return self.emit(Pointwise((Step(kind, 1),)), x, other)

    def linear(self, x: Value, w: Value, bias: Value | None = None) -> Value:
        if bias is None:
            return self.emit(Linear(), x, w)
        return self.emit(Linear((Step("add", 2),)), x, w, bias)
