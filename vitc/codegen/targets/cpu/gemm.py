"""`linear` as a GEMM over packed weights, its input read through an index map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.access import row_access, row_count, run_access
from vitc.codegen.kernel import Kernel, KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    readable,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.cpu.packings import PANEL, weight_packing
from vitc.ir.op import Op
from vitc.ir.types import Shape, per_image
from vitc.ops import Fused, Linear


@dataclass(frozen=True)
class Rows:
    """The row functor of the left operand: C++ type, its map if any, and how it is filled."""

    type: str
    init: str
    map: str = ""
    arguments: str = ""
    guard: str = ""


@dataclass(frozen=True)
class GemmParams:
    """Parameters of templates/cpu/gemm.cc.jinja. m is an expression of the call."""

    m: str
    n: int
    k: int
    weight: str
    rows: Rows
    epilogue: Epilogue


class Gemm(Kernel):
    """[M, K] x [N, K]^T with fused steps; the weight must be a constant."""

    name: ClassVar[str] = "gemm"
    ops: ClassVar[tuple[type[Op], ...]] = (Linear,)

    def refuses(self, site: Site) -> str | None:
        if not site.constant[1]:
            return "the weight depends on the input"
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        if index == 0:
            # Single elements gather too slowly: then one copy for all panels pays.
            access = run_access(operand, site.inputs[0].shape)
            return access is not None and access.run >= 4
        return readable(operand, stats_or_result(site, index))

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def packing(self, site: Site, index: int) -> Packing | None:
        return weight_packing(site.inputs[1].dtype) if index == 1 else None

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        return aliasable(call, first_step_operand=2)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, Fused)
        result = site.results[0].shape
        rows, batched = row_count(result)
        params = GemmParams(
            m=f"call.batch * {rows}" if batched else str(rows),
            n=per_image(result[-1:]),
            k=per_image(site.inputs[0].shape[-1:]),
            weight=C_TYPES[site.inputs[1].dtype],
            rows=left_rows(call.inputs[0], site.inputs[0].shape),
            epilogue=render_epilogue(op, call.inputs, call.outputs, result),
        )
        return Rendered(render("cpu/gemm.cc.jinja", params), f"panel {PANEL}, {params.rows.type}")


def left_rows(operand: Operand, shape: Shape) -> Rows:
    """The functor that reads rows of `shape` [..., K] out of the stored operand."""
    type_, k = C_TYPES[operand.type.dtype], per_image(shape[-1:])
    data = f"arg<const {type_}>(call, 0)"
    access = row_access(operand, shape)
    if access is not None and access.column == 1:
        stride = access.row.coefficient("m")
        if stride is not None and not access.guards and access.row.without("m").terms == ():
            offset = access.row.constant
            init = f"{{{data}{f' + {offset}' if offset else ''}}}"
            return Rows(f"DenseRows<{type_}, {k}, {stride}>", init)
        guard = " && ".join(str(g) for g in access.guards)
        return Rows(
            f"MappedRows<{type_}, {k}, Map>",
            f"{{{data}, Map{{}}}}",
            str(access.row),
            "int64_t m",
            guard,
        )
    runs = run_access(operand, shape)
    assert runs is not None, operand.map
    guard = " && ".join(str(g) for g in runs.guards)
    return Rows(
        f"GatherRows<{type_}, {k}, {runs.run}, Map>",
        f"{{{data}, Map{{}}}}",
        str(runs.start),
        "[[maybe_unused]] int64_t m, [[maybe_unused]] int64_t k",
        guard,
    )


def stats_or_result(site: Site, index: int) -> Shape:
    """The shape that step operand `index` is read over: statistics keep their own columns."""
    assert isinstance(site.op, Fused)
    result = site.results[0].shape
    for step in site.op.steps:
        if step.operand == index and step.kind == "row_rstd":
            return (*result[:-1], site.inputs[index].shape[-1])
    return result


def aliasable(call: KernelCall, first_step_operand: int) -> tuple[int, ...]:
    """Step operands with the very elements of the output: each is read before it is written."""
    output = call.outputs[0]
    names = [operand.value for operand in call.inputs]
    return tuple(
        index
        for index, operand in enumerate(call.inputs)
        if index >= first_step_operand
        and not call.site.constant[index]
        and operand.type == output.type
        and names.count(operand.value) == 1  # not also the product's own operand
        and operand.is_dense
        and output.is_dense
        and call.site.inputs[index].shape == call.site.results[0].shape
    )
