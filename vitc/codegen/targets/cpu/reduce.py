"""Reductions and group norm."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vitc.codegen.kernel import Kernel, KernelCall, Operand, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.steps import readable_step
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    float_text,
    refusal,
    render_epilogue,
    writable,
)
from vitc.ir.index_map import Expand, Reshape
from vitc.ir.op import Op
from vitc.ir.types import Batch, Shape, multiply, per_image
from vitc.ops import GroupNorm, Reduce


@dataclass(frozen=True)
class ReduceParams:
    """Parameters of templates/cpu/reduce.cc.jinja: run(call, arguments, epilogue, trailing)."""

    kernel: str
    arguments: tuple[str, ...]
    epilogue: Epilogue
    trailing: tuple[str, ...] = ()


class CpuReduce(Kernel):
    """Sum, mean or maximum over neighbouring axes."""

    name: ClassVar[str] = "reduce"
    ops: ClassVar[tuple[type[Op], ...]] = (Reduce,)

    def refuses(self, site: Site) -> str | None:
        axes = _axes(site)
        if axes != tuple(range(axes[0], axes[-1] + 1)):
            return f"axes {list(axes)} are not neighbours"
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return _reduction(operand, site) is not None
        return readable_step(site, index, operand)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Reduce)
        found = _reduction(call.inputs[0], site)
        assert found is not None
        offset, outer_stride, axis_stride = found
        outer, count, inner = _split(site)
        view: Shape = (outer, inner)  # rows and columns of the kernel's result
        result = site.results[0].shape
        operands = tuple(
            operand if i == 0 else _viewed(operand, result, view)
            for i, operand in enumerate(call.inputs)
        )
        outputs = (_viewed(call.outputs[0], result, view), *call.outputs[1:])
        ctype = C_TYPES[site.inputs[0].dtype]
        kind = {"sum": "kSum", "mean": "kMean", "max": "kMax"}[op.kind]
        data = f"arg<const {ctype}>(call, 0)" + (f" + {offset}" if offset else "")
        rows = f"call.batch * {outer.count}" if isinstance(outer, Batch) else str(outer)
        params = ReduceParams(
            f"Reduce<{ctype}, {count}, {inner}, ReduceOp::{kind}, Epilogue>",
            (rows, data, str(outer_stride), str(axis_stride)),
            render_epilogue(op, operands, outputs, view),
        )
        return Rendered(render("cpu/reduce.cc.jinja", params), f"{count} values each")


def _axes(site: Site) -> tuple[int, ...]:
    assert isinstance(site.op, Reduce)
    rank = site.inputs[0].rank
    return tuple(sorted(axis % rank for axis in site.op.axes))


def _split(site: Site) -> tuple[int | Batch, int, int]:
    """(outer, reduced, inner) sizes of the input."""
    axes, shape = _axes(site), site.inputs[0].shape
    return (
        multiply(shape[: axes[0]]),
        per_image(shape[axes[0] : axes[-1] + 1]),
        per_image(shape[axes[-1] + 1 :]),
    )


def _reduction(operand: Operand, site: Site) -> tuple[int, int, int] | None:
    """(offset, stride of the outer index, stride of the reduced one) in elements, or None."""
    outer, count, inner = _split(site)
    merged: Shape = (outer, count, inner)
    affine = operand.map.then(Reshape(merged)).strides()
    if affine is None:
        return None
    offset, (outer_stride, axis_stride, inner_stride) = affine
    dense = inner_stride == 1 if inner > 1 else axis_stride == 1 or count == 1
    return (offset, outer_stride, axis_stride) if dense else None


def _viewed(operand: Operand, result: Shape, view: Shape) -> Operand:
    """The operand as it broadcasts to `result`, seen in the shape `view`."""
    index_map = operand.map
    if index_map.result != result:
        index_map = index_map.then(Expand(result))
    return replace(operand, map=index_map.then(Reshape(view)))


class CpuGroupNorm(Kernel):
    """Group norm over dense channels-last tensors."""

    name: ClassVar[str] = "group_norm"
    ops: ClassVar[tuple[type[Op], ...]] = (GroupNorm,)

    def refuses(self, site: Site) -> str | None:
        assert isinstance(site.op, GroupNorm)
        return "it emits no statistics" if site.op.stats else refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return index > 0 and readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, GroupNorm)
        shape = site.inputs[0].shape
        pixels, channels = per_image(shape[1:-1]), per_image(shape[-1:])
        ctype = C_TYPES[site.inputs[0].dtype]
        epilogue = render_epilogue(op, call.inputs, call.outputs, site.results[0].shape)
        params = ReduceParams(
            f"GroupNorm<{ctype}, {pixels}, {channels}, {op.groups}, Epilogue>",
            (f"arg<const {ctype}>(call, 0)",),
            epilogue,
            (float_text(op.eps),),
        )
        text = render("cpu/reduce.cc.jinja", params)
        return Rendered(text, f"{op.groups} groups of {channels // op.groups} channels")
