"""Kernels that go over rows: pointwise work and copies, norms, softmax, concatenation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vitc.codegen.access import run_access
from vitc.codegen.kernel import KernelCall, Operand, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.gpu.epilogue import (
    C_TYPES,
    Epilogue,
    float_text,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.gpu.kernel import GpuKernel
from vitc.codegen.targets.gpu.sources import RowSource, row_source, row_total
from vitc.ir.index_map import Slice
from vitc.ir.op import Op
from vitc.ir.types import Shape, per_image
from vitc.ops import Concat, Fused, Norm, Pointwise, Softmax


@dataclass(frozen=True)
class RowPart:
    """One sweep over rows: `op` on each row that `source` gives, then the epilogue."""

    label: str
    op: str
    m: str
    columns: int
    slice: int
    source: RowSource
    epilogue: Epilogue
    eps: str = "0.f"


@dataclass(frozen=True)
class RowWiseParams:
    """Parameters of templates/gpu/rowwise.cu.jinja; parts run one after the other."""

    parts: tuple[RowPart, ...]


def _rendered(*parts: RowPart) -> Rendered:
    config = ", ".join(f"{part.op} over {part.columns} columns" for part in parts)
    return Rendered(render("gpu/rowwise.cu.jinja", RowWiseParams(parts)), config)


def _statistics(site: Site) -> str | None:
    """Why the site's statistics cannot be emitted, or None."""
    assert isinstance(site.op, Fused)
    chunk = 16 // site.inputs[0].dtype.itemsize
    if site.op.stats and per_image(site.results[0].shape[-1:]) % chunk:
        return f"statistics need rows of whole vectors of {chunk} elements"
    return refusal(site)


class _RowKernel(GpuKernel):
    """What the kernels of this file share: any map in front, steps behind."""

    def refuses(self, site: Site) -> str | None:
        return _statistics(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return run_access(operand, site.results[0].shape) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=0)


class GpuPointwise(_RowKernel):
    """Elementwise steps, broadcasting, conversion, and copies through any index map."""

    name: ClassVar[str] = "pointwise"
    ops: ClassVar[tuple[type[Op], ...]] = (Pointwise,)

    def render(self, call: KernelCall) -> Rendered:
        op = call.site.op
        assert isinstance(op, Fused)
        return _rendered(_part(call, op, "kNone", "pointwise"))


class GpuNorm(_RowKernel):
    """Layer norm and RMS norm over the last axis."""

    name: ClassVar[str] = "norm"
    ops: ClassVar[tuple[type[Op], ...]] = (Norm,)

    def writes(self, site: Site, operand: Operand) -> bool:
        assert isinstance(site.op, Norm)
        return not site.op.recenter and super().writes(site, operand)

    def render(self, call: KernelCall) -> Rendered:
        op = call.site.op
        assert isinstance(op, Norm)
        kind = {"layer": "kLayerNorm", "rms": "kRmsNorm"}[op.kind]
        steps = replace(op, stats=0, sums=False) if op.recenter else op
        first = replace(_part(call, steps, kind, "norm"), eps=float_text(op.eps))
        if not op.recenter:
            return _rendered(first)
        # The mean of the finished rows is known only after them: centred where they lie.
        position, result = len(call.inputs), call.site.results[0].shape
        plain = Fused((), op.stats, op.dtype, op.sums)
        centred = RowPart(
            "center",
            "kCenter",
            first.m,
            first.columns,
            op.stats,
            row_source(call.outputs[0], result, position),
            render_epilogue(plain, (), call.outputs, result, first_output=position),
        )
        return _rendered(first, centred)


class GpuSoftmax(_RowKernel):
    """Softmax over the last axis."""

    name: ClassVar[str] = "softmax"
    ops: ClassVar[tuple[type[Op], ...]] = (Softmax,)

    def refuses(self, site: Site) -> str | None:
        return _dtypes(site)

    def render(self, call: KernelCall) -> Rendered:
        return _rendered(_part(call, Fused(), "kSoftmax", "softmax"))


class GpuConcat(GpuKernel):
    """Concatenation where no producer could write its part itself: one copy per operand."""

    name: ClassVar[str] = "concat"
    ops: ClassVar[tuple[type[Op], ...]] = (Concat,)

    def refuses(self, site: Site) -> str | None:
        return _dtypes(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return run_access(operand, site.inputs[index].shape) is not None

    def render(self, call: KernelCall) -> Rendered:
        op, output, position = call.site.op, call.outputs[0], len(call.inputs)
        assert isinstance(op, Concat)
        parts: list[RowPart] = []
        start = 0
        for index, (operand, type_) in enumerate(zip(call.inputs, call.site.inputs, strict=True)):
            shape = type_.shape
            stop = start + per_image(shape[op.axis : op.axis + 1])
            piece = replace(output, map=output.map.then(Slice(op.axis, start, stop)))
            epilogue = render_epilogue(Fused(), (), (piece,), shape, first_output=position)
            source = row_source(operand, shape, index)
            columns = per_image(shape[-1:])
            parts.append(RowPart("concat", "kNone", row_total(shape), columns, 0, source, epilogue))
            start = stop
        return _rendered(*parts)


def _part(call: KernelCall, op: Fused, kind: str, label: str) -> RowPart:
    result: Shape = call.site.results[0].shape
    return RowPart(
        label,
        kind,
        row_total(result),
        per_image(result[-1:]),
        op.stats,
        row_source(call.inputs[0], result),
        render_epilogue(op, call.inputs, call.outputs, result),
    )


def _dtypes(site: Site) -> str | None:
    bad = [type_ for type_ in (*site.inputs, *site.results) if type_.dtype not in C_TYPES]
    return f"dtype {bad[0].dtype.value} has no GPU form" if bad else None
