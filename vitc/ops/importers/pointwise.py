"""Importers of elementwise calls: one `pointwise` each, of one or a few steps."""

from __future__ import annotations

from typing import Any

from vitc.ir.builder import Value
from vitc.ir.types import DType
from vitc.ops import Pointwise, Step
from vitc.ops.aten import Context, Importer, aten, refuse

Operand = Value | float | int

# What each call without further operands is called as a step.
_UNARY = {
    "abs": "abs",
    "cos": "cos",
    "exp": "exp",
    "hardsigmoid": "hardsigmoid",
    "hardswish": "hardswish",
    "log": "log",
    "neg": "neg",
    "reciprocal": "reciprocal",
    "relu": "relu",
    "rsqrt": "rsqrt",
    "sigmoid": "sigmoid",
    "silu": "silu",
    "sin": "sin",
    "sqrt": "sqrt",
    "square": "square",
    "tanh": "tanh",
}
_GELU = {"none": "gelu", "tanh": "gelu_tanh"}


def _unary(step: str) -> Importer:
    def importer(b: Context, x: Value) -> Value:
        return b.unary(x, step)

    return importer


for _name, _step in _UNARY.items():
    aten(f"{_name}.default", f"{_name}_.default")(_unary(_step))


@aten("gelu.default", "gelu_.default")
def gelu(b: Context, x: Value, *, approximate: str = "none") -> Value:
    return b.unary(x, _GELU[approximate])


@aten("relu6.default", "relu6_.default")
def relu6(b: Context, x: Value) -> Value:
    return clamp(b, x, 0.0, 6.0)


@aten("clamp.default", "clamp_.default", "hardtanh.default", "hardtanh_.default")
def clamp(b: Context, x: Value, low: float | None = None, high: float | None = None) -> Value:
    steps: list[Step] = []
    if low is not None:
        steps.append(Step("clamp_min", None, (float(low),)))
    if high is not None:
        steps.append(Step("clamp_max", None, (float(high),)))
    return b.unary(x, *steps) if steps else x


@aten("clamp_min.default", "clamp_min_.default")
def clamp_min(b: Context, x: Value, low: float) -> Value:
    return clamp(b, x, low)


@aten("clamp_max.default", "clamp_max_.default")
def clamp_max(b: Context, x: Value, high: float) -> Value:
    return clamp(b, x, None, high)


@aten("add.Tensor", "add_.Tensor", "add.Scalar")
def add(b: Context, x: Value, other: Operand, alpha: float = 1) -> Value:
    if not isinstance(other, Value):
        return b.shift(x, other * alpha)
    return b.binary("add", x, _times(b, other, alpha))


@aten("sub.Tensor", "sub_.Tensor", "sub.Scalar")
def sub(b: Context, x: Value, other: Operand, alpha: float = 1) -> Value:
    if not isinstance(other, Value):
        return b.shift(x, -other * alpha)
    return b.binary("sub", x, _times(b, other, alpha))


@aten("rsub.Scalar", "rsub.Tensor")
def rsub(b: Context, x: Value, other: Operand, alpha: float = 1) -> Value:
    if isinstance(other, Value):
        return sub(b, other, x, alpha)
    steps = (Step("scale", None, (-float(alpha),)), Step("shift", None, (float(other),)))
    return b.unary(x, *steps)


def _times(b: Context, x: Value, alpha: float) -> Value:
    with b.part("alpha"):
        return x if alpha == 1 else b.scale(x, alpha)


@aten("mul.Tensor", "mul_.Tensor", "mul.Scalar")
def mul(b: Context, x: Value, other: Operand) -> Value:
    return b.binary("mul", x, other) if isinstance(other, Value) else b.scale(x, other)


@aten("div.Tensor", "div_.Tensor", "div.Scalar")
def div(b: Context, x: Value, other: Operand) -> Value:
    refuse(not x.type.dtype.is_float, f"division of {x.type.dtype.value}")
    return b.binary("div", x, other) if isinstance(other, Value) else b.scale(x, 1.0 / other)


@aten("pow.Tensor_Scalar")
def power(b: Context, x: Value, exponent: float) -> Value:
    return b.unary(x, "square" if exponent == 2 else Step("pow", None, (float(exponent),)))


@aten("maximum.default", "max.other")
def maximum(b: Context, x: Value, other: Value) -> Value:
    return b.binary("maximum", x, other)


@aten("minimum.default", "min.other")
def minimum(b: Context, x: Value, other: Value) -> Value:
    return b.binary("minimum", x, other)


@aten("to.dtype", "to.dtype_layout", "to.device", "to.other", "type_as.default", "_to_copy.default")
def cast(b: Context, x: Value, *_: Any, **__: Any) -> Value:
    """A change of dtype is determined by the type that it results in; float32 is the widest."""
    wanted = b.results[0].dtype
    refuse(wanted is DType.FLOAT64, "computing in float64")
    return x if wanted is x.type.dtype else b.emit(Pointwise(dtype=wanted), x)
