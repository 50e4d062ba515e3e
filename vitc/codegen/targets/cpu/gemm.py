"""`linear` as a GEMM over packed weights, its input read through an index map."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.access import run_access
from vitc.codegen.kernel import Kernel, KernelCall, Operand, Packing, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.steps import aliasable
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.cpu.packings import PANEL, weight_packing
from vitc.codegen.targets.cpu.rows import Rows, left_rows, row_total
from vitc.ir.op import Op
from vitc.ir.types import per_image
from vitc.ops import Fused, Linear


@dataclass(frozen=True)
class GemmParams:
    """Parameters of templates/cpu/gemm.cc.jinja. m is an expression of the call."""

    m: str
    n: int
    k: int
    weight: str
    rows: Rows
    epilogue: Epilogue


class CpuGemm(Kernel):
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
        return readable_step(site, index, operand)

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
        params = GemmParams(
            m=row_total(result),
            n=per_image(result[-1:]),
            k=per_image(site.inputs[0].shape[-1:]),
            weight=C_TYPES[site.inputs[1].dtype],
            rows=left_rows(call.inputs[0], site.inputs[0].shape, 0),
            epilogue=render_epilogue(op, call.inputs, call.outputs, result),
        )
        return Rendered(render("cpu/gemm.cc.jinja", params), f"panel {PANEL}, {params.rows.type}")
