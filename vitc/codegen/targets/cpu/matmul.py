"""Products of two activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.access import run_access
from vitc.codegen.kernel import Kernel, KernelCall, Operand, Rendered, Site
from vitc.codegen.products import left_shape, right_operand
from vitc.codegen.render import render
from vitc.codegen.targets.cpu.epilogue import (
    C_TYPES,
    Epilogue,
    readable_step,
    refusal,
    render_epilogue,
    writable,
)
from vitc.codegen.targets.cpu.rows import Rows, left_rows
from vitc.ir.op import Op
from vitc.ir.types import Batch, multiply, per_image
from vitc.ops import MatMul


@dataclass(frozen=True)
class MatMulParams:
    """Parameters of templates/cpu/matmul.cc.jinja. offset: of item i of the right operand."""

    m: int
    n: int
    k: int
    items: str
    transposed: bool
    stride: int
    offset: str
    type: str
    rows: Rows
    epilogue: Epilogue


class CpuMatMul(Kernel):
    """Batched product; the right operand is packed anew for each item."""

    name: ClassVar[str] = "matmul"
    ops: ClassVar[tuple[type[Op], ...]] = (MatMul,)

    def refuses(self, site: Site) -> str | None:
        lead = site.results[0].shape[:-2]
        if not any(isinstance(dim, Batch) for dim in lead):
            return "the batch is not a leading dimension"
        return refusal(site)

    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        result = site.results[0].shape
        if index == 0:
            return run_access(operand, left_shape(site)) is not None
        if index == 1:
            right = right_operand(operand, result)
            return right is not None and 1 in right[:2]
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, MatMul)
        result = site.results[0].shape
        right = right_operand(call.inputs[1], result)
        assert right is not None
        row_stride, column_stride, offset = right
        transposed = column_stride != 1
        items = multiply(result[:-2])
        m, n = per_image(result[-2:-1]), per_image(result[-1:])
        params = MatMulParams(
            m=m,
            n=n,
            k=per_image(site.inputs[0].shape[-1:]),
            items=f"call.batch * {items.count}" if isinstance(items, Batch) else str(items),
            transposed=transposed,
            stride=column_stride if transposed else row_stride,
            offset=str(offset),
            type=C_TYPES[call.inputs[1].type.dtype],
            rows=left_rows(call.inputs[0], left_shape(site), 0),
            epilogue=render_epilogue(op, call.inputs, call.outputs, result),
        )
        return Rendered(render("cpu/matmul.cc.jinja", params), f"{m} x {n} x {params.k} an item")
