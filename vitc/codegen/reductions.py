"""How kernels see a reduction: outer rows, reduced elements, inner columns."""

from __future__ import annotations

from dataclasses import replace

from vitc.codegen.kernel import KernelCall, Operand, Site
from vitc.ir.index_map import Expand, Reshape
from vitc.ir.types import Batch, Shape, multiply, per_image
from vitc.ops import Reduce


def _axes(site: Site) -> tuple[int, ...]:
    assert isinstance(site.op, Reduce)
    rank = site.inputs[0].rank
    return tuple(sorted(axis % rank for axis in site.op.axes))


def split_axes(site: Site) -> tuple[int | Batch, int, int]:
    """(outer, reduced, inner) sizes of the input."""
    axes, shape = _axes(site), site.inputs[0].shape
    return (
        multiply(shape[: axes[0]]),
        per_image(shape[axes[0] : axes[-1] + 1]),
        per_image(shape[axes[-1] + 1 :]),
    )


def reduction(operand: Operand, site: Site) -> tuple[int, int, int] | None:
    """(offset, stride of the outer index, stride of the reduced one) in elements, or None."""
    outer, count, inner = split_axes(site)
    merged: Shape = (outer, count, inner)
    affine = operand.map.then(Reshape(merged)).strides()
    if affine is None:
        return None
    offset, (outer_stride, axis_stride, inner_stride) = affine
    dense = inner_stride == 1 if inner > 1 else axis_stride == 1 or count == 1
    return (offset, outer_stride, axis_stride) if dense else None


def neighbours(site: Site) -> str | None:
    """What is wrong with the axes, or None when they lie side by side."""
    axes = _axes(site)
    if axes == tuple(range(axes[0], axes[-1] + 1)):
        return None
    return f"axes {list(axes)} are not neighbours"


def viewed(call: KernelCall, view: Shape) -> tuple[tuple[Operand, ...], tuple[Operand, ...]]:
    """Inputs and outputs of the call with step operands and result seen in the shape `view`."""
    result = call.site.results[0].shape
    steps = tuple(_seen(operand, result, view) for operand in call.inputs[1:])
    return (call.inputs[0], *steps), (_seen(call.outputs[0], result, view), *call.outputs[1:])


def _seen(operand: Operand, result: Shape, view: Shape) -> Operand:
    """The operand as it broadcasts to `result`, seen in the shape `view`."""
    index_map = operand.map
    if index_map.result != result:
        index_map = index_map.then(Expand(result))
    return replace(operand, map=index_map.then(Reshape(view)))
