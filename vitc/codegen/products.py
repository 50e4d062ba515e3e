"""How kernels reach the operands of a batched product."""

from __future__ import annotations

from vitc.codegen.kernel import Operand, Site
from vitc.ir.expr import Expr, Var, coordinates, source_of
from vitc.ir.index_map import Expand, IndexMap
from vitc.ir.types import Shape, per_image


def left_shape(site: Site) -> Shape:
    """The left operand's shape with its leading dimensions broadcast."""
    return (*site.results[0].shape[:-1], site.inputs[0].shape[-1])


def right_operand(operand: Operand, result: Shape) -> tuple[int, int, Expr] | None:
    """(distance of rows, distance of columns, start of item i) in elements, or None."""
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
    if strides[0] is None or strides[1] is None:
        return None
    return strides[0], strides[1], source.index.without("r").without("c")
