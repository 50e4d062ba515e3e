"""Kernels that go over rows: pointwise work and copies, norms, softmax, concatenation."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from vitc.codegen.access import run_access
from vitc.codegen.kernel import Kernel, KernelCall, Operand, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    float_text,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.cpu.rows import Rows, left_rows, row_total
from vitc.ir.index_map import Slice
from vitc.ir.op import Op
from vitc.ir.types import Shape, per_image
from vitc.ops import Concat, Fused, Norm, Pointwise, Softmax


@dataclass(frozen=True)
class RowPart:
    """One sweep over rows: `op` on each row that `rows` gives, then the epilogue."""

    op: str
    m: str
    columns: int
    rows: Rows
    epilogue: Epilogue
    eps: str = "0"


@dataclass(frozen=True)
class RowWiseParams:
    """Parameters of templates/cpu/rowwise.cc.jinja; parts run one after the other."""

    parts: tuple[RowPart, ...]


def _rendered(*parts: RowPart) -> Rendered:
    config = ", ".join(f"{part.op} over {part.columns} columns" for part in parts)
    return Rendered(render("cpu/rowwise.cc.jinja", RowWiseParams(parts)), config)


class CpuPointwise(Kernel):
    """Elementwise steps, broadcasting, conversion, and copies through any index map."""

    name: ClassVar[str] = "pointwise"
    ops: ClassVar[tuple[type[Op], ...]] = (Pointwise,)

    def refuses(self, site: Site) -> str | None:
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return run_access(operand, site.results[0].shape) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=0)

    def render(self, call: KernelCall) -> Rendered:
        op = call.site.op
        assert isinstance(op, Fused)
        result = call.site.results[0].shape
        epilogue = render_epilogue(op, call.inputs, call.outputs, result)
        rows = left_rows(call.inputs[0], result, 0)
        return _rendered(
            RowPart("kNone", row_total(result), per_image(result[-1:]), rows, epilogue)
        )


class CpuNorm(Kernel):
    """Layer norm and RMS norm over the last axis."""

    name: ClassVar[str] = "norm"
    ops: ClassVar[tuple[type[Op], ...]] = (Norm,)

    def refuses(self, site: Site) -> str | None:
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            return run_access(operand, site.inputs[0].shape) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        assert isinstance(site.op, Norm)
        return not site.op.recenter and writable(operand, site.results[0].shape)

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=0)

    def render(self, call: KernelCall) -> Rendered:
        op, result = call.site.op, call.site.results[0].shape
        assert isinstance(op, Norm)
        kind = {"layer": "kLayerNorm", "rms": "kRmsNorm"}[op.kind]
        m, columns = row_total(result), per_image(result[-1:])
        steps = replace(op, stats=0, sums=False) if op.recenter else op
        epilogue = render_epilogue(steps, call.inputs, call.outputs, result)
        rows = left_rows(call.inputs[0], result, 0)
        first = RowPart(kind, m, columns, rows, epilogue, float_text(op.eps))
        if not op.recenter:
            return _rendered(first)
        # The mean of the finished rows is known only after them: centred where they lie.
        position = len(call.inputs)
        plain = Fused((), op.stats, op.dtype, op.sums)
        centred = render_epilogue(plain, (), call.outputs, result, first_output=position)
        again = left_rows(call.outputs[0], result, position, "1")
        return _rendered(first, RowPart("kCenter", m, columns, again, centred))


class CpuSoftmax(Kernel):
    """Softmax over the last axis."""

    name: ClassVar[str] = "softmax"
    ops: ClassVar[tuple[type[Op], ...]] = (Softmax,)

    def refuses(self, site: Site) -> str | None:
        types = (*site.inputs, *site.results)
        bad = [type_ for type_ in types if type_.dtype not in C_TYPES]
        return f"{bad[0]} is neither float32 nor bfloat16" if bad else None

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return run_access(operand, site.inputs[0].shape) is not None

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=0)

    def render(self, call: KernelCall) -> Rendered:
        result = call.site.results[0].shape
        epilogue = render_epilogue(Fused(), call.inputs, call.outputs, result)
        rows = left_rows(call.inputs[0], result, 0)
        columns = per_image(result[-1:])
        return _rendered(RowPart("kSoftmax", row_total(result), columns, rows, epilogue))


class CpuConcat(Kernel):
    """Concatenation where no producer could write its part itself: one copy per operand."""

    name: ClassVar[str] = "concat"
    ops: ClassVar[tuple[type[Op], ...]] = (Concat,)

    def refuses(self, site: Site) -> str | None:
        bad = [type_ for type_ in (*site.inputs, *site.results) if type_.dtype not in C_TYPES]
        return f"{bad[0]} is neither float32 nor bfloat16" if bad else None

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        return run_access(operand, site.inputs[index].shape) is not None

    def render(self, call: KernelCall) -> Rendered:
        op, output = call.site.op, call.outputs[0]
        assert isinstance(op, Concat)
        parts: list[RowPart] = []
        start = 0
        for index, (operand, type_) in enumerate(zip(call.inputs, call.site.inputs, strict=True)):
            stop = start + per_image(type_.shape[op.axis : op.axis + 1])
            piece = replace(output, map=output.map.then(Slice(op.axis, start, stop)))
            parts.append(self._part(index, operand, piece, type_.shape, len(call.inputs)))
            start = stop
        return _rendered(*parts)

    def _part(
        self, index: int, operand: Operand, piece: Operand, shape: Shape, position: int
    ) -> RowPart:
        epilogue = render_epilogue(Fused(), (), (piece,), shape, first_output=position)
        rows = left_rows(operand, shape, index, str(index) if index else "")
        return RowPart("kNone", row_total(shape), per_image(shape[-1:]), rows, epilogue)
