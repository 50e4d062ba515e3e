"""What rides on an op: an ordered list of typed steps applied to its result.

"linear + bias + GELU + residual" is one `linear` with `steps=[add($2), gelu, add($3)]`, where `$i`
is operand i of the node. The same steps make up a stand-alone `pointwise`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np

from vitc.ir.op import Array, Op, require
from vitc.ir.types import DType, TensorType, broadcast, per_image


@dataclass(frozen=True)
class Step:
    """One elementwise step. `operand` indexes the node's inputs; `values` are its constants.

    kinds with an operand o: add, sub (x - o), rsub (o - x), mul, div (x / o), rdiv (o / x),
    maximum, minimum, and two that divide rows by what their statistics say: row_rstd($stats, n,
    eps), x / sqrt(sum(stats, -1) / n + eps), and layer_rstd($stats, n, eps), where pairs (squares,
    sum) give the variance: x / sqrt(sum(squares) / n - (sum(sums) / n)^2 + eps).
    kinds with a constant c: scale (x * c), shift (x + c), clamp_min, clamp_max, pow.
    The rest have neither: see `UNARY`.
    """

    kind: str
    operand: int | None = None
    values: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        arity = STEP_ARITY.get(self.kind)
        if arity is None:
            raise ValueError(f"unknown step '{self.kind}'; known: {', '.join(sorted(STEP_ARITY))}")
        has = (self.operand is not None, len(self.values))
        if has != arity:
            raise ValueError(f"step '{self.kind}' takes (operand, constants) {arity}, got {has}")

    @property
    def scales_rows(self) -> bool:
        """Whether the operand is the statistics of the rows."""
        return self.kind in ROW_SCALES

    def __str__(self) -> str:
        arguments = [f"${self.operand}"] if self.operand is not None else []
        arguments += [repr(value) for value in self.values]
        return f"{self.kind}({', '.join(arguments)})" if arguments else self.kind

    def shifted(self, by: int) -> Step:
        """The step with its operand index moved by `by`."""
        return self if self.operand is None else replace(self, operand=self.operand + by)


def _erf(x: Array) -> Array:
    import torch  # numpy has no erf; recipes never need one, so the runtime never comes here

    return np.asarray(torch.erf(torch.tensor(x)))


def _sigmoid(x: Array) -> Array:
    return 1.0 / (1.0 + np.exp(-x))


UNARY: dict[str, Callable[[Array], Array]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + _erf(x / np.sqrt(2.0))),
    "gelu_tanh": lambda x: 0.5 * x * (1.0 + np.tanh(np.sqrt(2.0 / np.pi) * (x + 0.044715 * x**3))),
    "quick_gelu": lambda x: x * _sigmoid(1.702 * x),
    "silu": lambda x: x * _sigmoid(x),
    "relu": lambda x: np.maximum(x, 0.0),
    "hardswish": lambda x: x * np.minimum(np.maximum(x + 3.0, 0.0), 6.0) / 6.0,
    "hardsigmoid": lambda x: np.minimum(np.maximum(x + 3.0, 0.0), 6.0) / 6.0,
    "sigmoid": _sigmoid,
    "tanh": np.tanh,
    "exp": np.exp,
    "log": np.log,
    "sqrt": np.sqrt,
    "rsqrt": lambda x: 1.0 / np.sqrt(x),
    "reciprocal": lambda x: 1.0 / x,
    "square": np.square,
    "neg": np.negative,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
}
BINARY: dict[str, Callable[[Array, Array], Array]] = {
    "add": lambda x, o: x + o,
    "sub": lambda x, o: x - o,
    "rsub": lambda x, o: o - x,
    "mul": lambda x, o: x * o,
    "div": lambda x, o: x / o,
    "rdiv": lambda x, o: o / x,
    "maximum": np.maximum,
    "minimum": np.minimum,
}
CONSTANT: dict[str, Callable[[Array, float], Array]] = {
    "scale": lambda x, c: x * c,
    "shift": lambda x, c: x + c,
    "clamp_min": np.maximum,
    "clamp_max": np.minimum,
    "pow": lambda x, c: x**c,
}
ROW_SCALES = ("row_rstd", "layer_rstd")
STEP_ARITY: dict[str, tuple[bool, int]] = {
    **dict.fromkeys(UNARY, (False, 0)),
    **dict.fromkeys(BINARY, (True, 0)),
    **dict.fromkeys(CONSTANT, (False, 1)),
    **dict.fromkeys(ROW_SCALES, (True, 2)),
}


def apply_step(step: Step, x: Array, operands: Sequence[Array]) -> Array:
    """The step's meaning on float64 arrays; `operands` are all inputs of the node."""
    if step.kind in UNARY:
        return UNARY[step.kind](x)
    if step.kind in CONSTANT:
        return CONSTANT[step.kind](x, step.values[0])
    operand = operands[step.operand or 0]
    if step.kind == "row_rstd":
        size, eps = step.values
        return x / np.sqrt(operand.sum(-1, keepdims=True) / size + eps)
    if step.kind == "layer_rstd":
        size, eps = step.values
        squares, sums = (operand[..., i::2].sum(-1, keepdims=True) / size for i in (0, 1))
        return x / np.sqrt(np.maximum(squares - np.square(sums), 0.0) + eps)
    return BINARY[step.kind](x, operand)


@dataclass(frozen=True)
class Fused(Op):
    """Base of the ops that take steps.

    stats: 0, or the column width of the second result: fp32 partial sums of squares of the final
    values, [..., ceil(columns / stats)], one per row and slice of `stats` columns.
    dtype: storage type of the first result; None means that of the first operand.
    sums: each sum of squares is followed by the sum of the same values: [..., 2 ceil(...)].
    """

    arity: ClassVar[int] = 1

    steps: tuple[Step, ...] = ()
    stats: int = 0
    dtype: DType | None = None
    sums: bool = False

    @property
    def main_operands(self) -> int:
        """How many leading operands belong to the op itself rather than to its steps."""
        return self.arity

    def finish_types(
        self, shape: TensorType, types: Sequence[TensorType]
    ) -> tuple[TensorType, ...]:
        """Result types of the op whose own result is `shape`. Raises TypeMismatch."""
        used = {step.operand for step in self.steps if step.operand is not None}
        extra = set(range(self.main_operands, len(types)))
        require(
            used == extra,
            f"steps use operands {sorted(used)}, the node has {sorted(extra)}",
        )
        result = shape.shape
        for step in self.steps:
            if step.operand is None:
                continue
            operand = types[step.operand].shape
            if step.scales_rows:
                require(
                    operand[:-1] == result[:-1],
                    f"statistics {types[step.operand]} for rows of {shape}",
                )
                pairs = step.kind != "layer_rstd" or per_image(operand[-1:]) % 2 == 0
                require(pairs, f"pairs of statistics, not {types[step.operand]}")
            else:
                widened = broadcast((result, operand))
                # Only a stand-alone pointwise may grow by its operands.
                require(self.grows or widened == result, f"step {step} would widen {shape}")
                result = widened
        final = TensorType(result, self.dtype or shape.dtype)
        if not self.stats:
            require(not self.sums, "sums are of the columns that `stats` says")
            return (final,)
        columns = result[-1]
        require(isinstance(columns, int), "statistics need a fixed number of columns")
        parts = self.statistics_of(per_image((columns,)))
        return final, TensorType((*result[:-1], parts), DType.FLOAT32)

    def statistics_of(self, columns: int) -> int:
        """How many numbers tell of a row of `columns`."""
        return -(-columns // self.stats) * (2 if self.sums else 1)

    @property
    def grows(self) -> bool:
        return False

    def finish(self, result: Array, operands: Sequence[Array]) -> tuple[Array, ...]:
        """Applies the steps and adds the statistics."""
        for step in self.steps:
            result = apply_step(step, result, operands)
        if not self.stats:
            return (result,)
        columns = result.shape[-1]
        padded = np.zeros((*result.shape[:-1], -(-columns // self.stats) * self.stats))
        padded[..., :columns] = result
        slices = np.reshape(padded, (*result.shape[:-1], -1, self.stats))
        squares = np.sum(np.square(slices), -1)
        if not self.sums:
            return result, squares
        pairs = np.stack((squares, np.sum(slices, -1)), -1)
        return result, np.reshape(pairs, (*result.shape[:-1], -1))

    def step_flops(self, results: Sequence[TensorType]) -> int:
        """One operation per step and element; the usual convention ignores transcendental cost."""
        return len(self.steps) * per_image(results[0].shape)


def bias(operand: int) -> Step:
    """Adds operand `operand`, broadcast over the rows."""
    return Step("add", operand)
