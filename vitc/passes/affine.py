"""Affine maps per channel, as steps and as recipes of constants.

x * scale * factor + shift, where scale and shift are constants [n] over the last axis.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from vitc.ir.builder import Builder, Value
from vitc.passes.rewrite import Match
from vitc.passes.steps import Bound

KINDS = frozenset(("scale", "shift", "add", "sub", "rsub", "mul", "div"))


@dataclass(frozen=True)
class Affine:
    """factor * scale * x + shift; None stands for ones and zeros."""

    columns: int
    factor: float = 1.0
    scale: Value | None = None
    shift: Value | None = None

    def then(self, build: Builder, step: Bound, operand: Value | None) -> Affine:
        """This map, then the step, whose operand has been made a vector."""
        kind = step.kind
        if kind == "scale":
            (c,) = step.values
            shift = self.shift and build.scale(self.shift, c)
            return replace(self, factor=self.factor * c, shift=shift)
        if kind == "shift":
            vector = build.literal(np.full(self.columns, step.values[0], np.float64))
            return self._add(build, "add", vector)
        assert operand is not None
        if kind in ("mul", "div"):
            scale = _combine(build, kind, self.scale, operand)
            return replace(
                self, scale=scale, shift=self.shift and build.binary(kind, self.shift, operand)
            )
        if kind == "rsub":
            return self.then(build, Bound("scale", None, (-1.0,)), None)._add(build, "add", operand)
        return self._add(build, kind, operand)

    def _add(self, build: Builder, kind: str, vector: Value) -> Affine:
        if self.shift is None:
            return replace(self, shift=vector if kind == "add" else build.scale(vector, -1.0))
        return replace(self, shift=build.binary(kind, self.shift, vector))

    def scale_weight(self, build: Builder, w: Value, axis: int) -> Value:
        """The weight times factor and scale, which run along `axis`."""
        if self.factor != 1.0:
            w = build.scale(w, self.factor)
        if self.scale is None:
            return w
        shape = [1] * len(w.shape)
        shape[axis] = self.columns
        while len(shape) > 1 and shape[0] == 1:
            del shape[0]  # broadcasting adds leading axes by itself
        return build.binary("mul", w, build.reshape(self.scale, shape))

    def steps(self) -> list[Bound]:
        """The map as steps."""
        steps: list[Bound] = []
        if self.factor != 1.0:
            steps.append(Bound("scale", None, (self.factor,)))
        if self.scale is not None:
            steps.append(Bound("mul", self.scale))
        if self.shift is not None:
            steps.append(Bound("add", self.shift))
        return steps


def _combine(build: Builder, kind: str, scale: Value | None, operand: Value) -> Value:
    if scale is not None:
        return build.binary(kind, scale, operand)
    return operand if kind == "mul" else build.unary(operand, "reciprocal")


def as_vector(match: Match, operand: Value, columns: int) -> Value | None:
    """The operand as a constant [columns], or None when it is no constant per channel."""
    if not match.is_constant(operand.name) or any(dim != 1 for dim in operand.shape[:-1]):
        return None
    width = operand.shape[-1] if operand.shape else 1
    if width == columns:
        return match.build.reshape(operand, (columns,))
    if width != 1:
        return None
    return match.build.expand(match.build.reshape(operand, (1,)), (columns,))


def is_affine(match: Match, step: Bound, columns: int) -> bool:
    """Whether the step scales or shifts each channel by a constant."""
    if step.kind not in KINDS or step.operand is None:
        return step.kind in KINDS
    shape = step.operand.shape
    fits = all(dim == 1 for dim in shape[:-1]) and (not shape or shape[-1] in (1, columns))
    return fits and match.is_constant(step.operand.name)


def affine_prefix(match: Match, steps: Sequence[Bound], columns: int) -> int:
    """How many steps from the first on are affine per channel."""
    count = 0
    while count < len(steps) and is_affine(match, steps[count], columns):
        count += 1
    return count


def affine_suffix(match: Match, steps: Sequence[Bound], columns: int) -> int:
    """How many steps up to the last are affine per channel."""
    count = 0
    while count < len(steps) and is_affine(match, steps[-1 - count], columns):
        count += 1
    return count


def composed(match: Match, steps: Sequence[Bound], columns: int) -> Affine:
    """The affine steps as one map; recipe nodes are emitted."""
    result = Affine(columns)
    for step in steps:
        operand = None if step.operand is None else as_vector(match, step.operand, columns)
        result = result.then(match.build, step, operand)
    return result
