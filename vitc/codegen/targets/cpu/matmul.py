"""Products of two activations."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from vitc.codegen.access import run_access
from vitc.codegen.kernel import Kernel, KernelCall, Operand, Rendered, Site
from vitc.codegen.render import render
from vitc.codegen.steps import readable_step
from vitc.codegen.targets.cpu.epilogue import C_TYPES, Epilogue, refusal, render_epilogue, writable
from vitc.codegen.targets.cpu.rows import Rows, left_rows
from vitc.ir.expr import Expr, Var, coordinates, source_of
from vitc.ir.index_map import Expand, IndexMap
from vitc.ir.op import Op
from vitc.ir.types import Batch, Shape, multiply, per_image
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
            return run_access(operand, _left_shape(site)) is not None
        if index == 1:
            return _right(operand, result) is not None
        return readable_step(site, index, operand)

    def writes(self, site: Site, operand: Operand) -> bool:
        return writable(operand, site.results[0].shape)

    def render(self, call: KernelCall) -> Rendered:
        op, site = call.site.op, call.site
        assert isinstance(op, MatMul)
        result = site.results[0].shape
        right = _right(call.inputs[1], result)
        assert right is not None
        transposed, stride, offset = right
        items = multiply(result[:-2])
        m, n = per_image(result[-2:-1]), per_image(result[-1:])
        params = MatMulParams(
            m=m,
            n=n,
            k=per_image(site.inputs[0].shape[-1:]),
            items=f"call.batch * {items.count}" if isinstance(items, Batch) else str(items),
            transposed=transposed,
            stride=stride,
            offset=str(offset),
            type=C_TYPES[call.inputs[1].type.dtype],
            rows=left_rows(call.inputs[0], _left_shape(site), 0),
            epilogue=render_epilogue(op, call.inputs, call.outputs, result),
        )
        return Rendered(render("cpu/matmul.cc.jinja", params), f"{m} x {n} x {params.k} an item")


def _left_shape(site: Site) -> Shape:
    """The left operand's shape with its leading dimensions broadcast."""
    return (*site.results[0].shape[:-1], site.inputs[0].shape[-1])


def _right(operand: Operand, result: Shape) -> tuple[bool, int, Expr] | None:
    """(rows are columns of B, element distance of rows, start of item i), or None."""
    inner = operand.map.result[-2:]
    whole: Shape = (*result[:-2], *inner)
    index_map = operand.map
    if index_map.result != whole:
        index_map = IndexMap(index_map.shape, (*index_map.views, Expand(whole)))
    lead = coordinates(result[:-2], Expr.of(Var("i")))
    if lead is None:
        return None
    row, column = Var("r", per_image(inner[:1])), Var("c", per_image(inner[1:]))
    source = source_of(index_map, [*lead, Expr.of(row), Expr.of(column)])
    if source is None or source.guards:
        return None
    strides = [source.index.coefficient(name) for name in ("r", "c")]
    if None in strides or 1 not in strides:
        return None
    transposed = strides[1] != 1
    stride = strides[1] if transposed else strides[0]
    assert stride is not None
    return transposed, stride, source.index.without("r").without("c")
