"""Reductions and group norm."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.kernel import Kernel, KernelCall, Operand, Rendered, Site
from vitc.codegen.reductions import neighbours, reduction, split_axes, viewed
from vitc.codegen.render import render
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    float_text,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.ir.op import Op
from vitc.ir.types import Batch, Shape, per_image
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
        return neighbours(site) or refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return reduction(operand, site) is not None
        return readable_step(site, index, operand)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Reduce)
        found = reduction(call.inputs[0], site)
        assert found is not None
        offset, outer_stride, axis_stride = found
        outer, count, inner = split_axes(site)
        view: Shape = (outer, inner)  # rows and columns of the kernel's result
        inputs, outputs = viewed(call, view)
        ctype = C_TYPES[site.inputs[0].dtype]
        kind = {"sum": "kSum", "mean": "kMean", "max": "kMax"}[op.kind]
        data = f"arg<const {ctype}>(call, 0)" + (f" + {offset}" if offset else "")
        rows = f"call.batch * {outer.count}" if isinstance(outer, Batch) else str(outer)
        params = ReduceParams(
            f"Reduce<{ctype}, {count}, {inner}, ReduceOp::{kind}, Epilogue>",
            (rows, data, str(outer_stride), str(axis_stride)),
            render_epilogue(op, inputs, outputs, view),
        )
        return Rendered(render("cpu/reduce.cc.jinja", params), f"{count} values each")


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
