"""Importers of reductions and softmax."""

from __future__ import annotations

from collections.abc import Sequence

from vitc.ir.builder import Value
from vitc.ops import Reduce, Softmax
from vitc.ops.aten import Context, aten, axis_of, refuse

Axes = int | Sequence[int] | None


def _reduce(b: Context, x: Value, kind: str, axes: Axes, keepdim: bool) -> Value:
    rank = len(x.shape)
    given = [axes] if isinstance(axes, int) else list(axes or range(rank))
    counted = tuple(sorted(axis_of(axis, rank) for axis in given))
    return b.emit(Reduce(kind=kind, axes=counted, keepdims=keepdim), x)


@aten("mean.dim", "mean.default")
def mean(
    b: Context, x: Value, axes: Axes = None, keepdim: bool = False, *, dtype: object = None
) -> Value:
    return _reduce(b, x, "mean", axes, keepdim)


@aten("sum.dim_IntList", "sum.default")
def total(
    b: Context, x: Value, axes: Axes = None, keepdim: bool = False, *, dtype: object = None
) -> Value:
    return _reduce(b, x, "sum", axes, keepdim)


@aten("amax.default")
def amax(b: Context, x: Value, axes: Axes = None, keepdim: bool = False) -> Value:
    return _reduce(b, x, "max", axes, keepdim)


@aten("max.dim")
def max_of(b: Context, x: Value, axis: int, keepdim: bool = False) -> tuple[Value, None]:
    """The maximum; where it stands is not computed, and its use is refused."""
    return _reduce(b, x, "max", axis, keepdim), None


@aten("linalg_vector_norm.default")
def vector_norm(
    b: Context,
    x: Value,
    order: float = 2,
    axes: Axes = None,
    keepdim: bool = False,
    *,
    dtype: object = None,
) -> Value:
    refuse(order != 2, f"vector norm of order {order}")
    with b.part("sum"):
        squares = _reduce(b, b.unary(x, "square"), "sum", axes, keepdim)
    return b.unary(squares, "sqrt")


@aten("softmax.int", "_softmax.default")
def softmax(b: Context, x: Value, axis: int, dtype: object = None) -> Value:
    rank = len(x.shape)
    axis = axis_of(axis, rank)
    if axis == rank - 1:
        return b.emit(Softmax(), x)
    order = [*(i for i in range(rank) if i != axis), axis]
    with b.part("last"):
        last = b.emit(Softmax(), b.permute(x, order))
    return b.permute(last, [order.index(i) for i in range(rank)])
