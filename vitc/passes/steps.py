"""Steps with their operands at hand, so that rules need not count operand numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Node
from vitc.ops import Fused, Step
from vitc.passes.rewrite import Match

FusedT = TypeVar("FusedT", bound=Fused)


@dataclass(frozen=True)
class Bound:
    """A step whose operand is a value rather than a number."""

    kind: str
    operand: Value | None = None
    values: tuple[float, ...] = ()


def bound_steps(match: Match, node: Node, op: Fused) -> list[Bound]:
    """The steps of a node of the rebuilt graph."""
    return [
        Bound(
            step.kind,
            None if step.operand is None else match.value(node.inputs[step.operand]),
            step.values,
        )
        for step in op.steps
    ]


def main_operands(match: Match, node: Node, op: Fused) -> tuple[Value, ...]:
    """The operands that belong to the op itself."""
    return match.values(node)[: op.main_operands]


def with_steps(op: FusedT, steps: Sequence[Bound]) -> tuple[FusedT, list[Value]]:
    """The op with these steps, and the operands to append to its own."""
    operands: list[Value] = []
    made: list[Step] = []
    for step in steps:
        index = None
        if step.operand is not None:
            if step.operand not in operands:
                operands.append(step.operand)
            index = op.main_operands + operands.index(step.operand)
        made.append(Step(step.kind, index, step.values))
    return replace(op, steps=tuple(made)), operands


def emit_steps(
    build: Builder, op: Fused, mains: Sequence[Value], steps: Sequence[Bound]
) -> tuple[Value, ...]:
    """Emits the op on its own operands with exactly these steps."""
    finished, operands = with_steps(op, steps)
    return build.emit_all(finished, *mains, *operands)


def is_plain(op: Fused) -> bool:
    """Whether steps can be appended: no statistics, cast or recentring comes after the steps."""
    return op.stats == 0 and op.dtype is None and not getattr(op, "recenter", False)
