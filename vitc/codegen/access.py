"""How a kernel that works row by row reaches an operand: index maps as row and column offsets.

A kernel sees its result as rows m of N columns n. An operand's element for (m, n) lies at
`row(m) + column * n`, where the map allows it.
"""

from __future__ import annotations

from dataclasses import dataclass

from vitc.codegen.kernel import Operand
from vitc.ir.expr import Expr, Guard, Source, Var, coordinates, source_of, variables
from vitc.ir.index_map import Expand, IndexMap
from vitc.ir.types import Batch, Shape, multiply, per_image

M, N = Var("m"), "n"


@dataclass(frozen=True)
class RowAccess:
    """Element (m, n) of an operand is data[row + column * n]; column is 0 or 1.

    guards: conditions on m outside of which the row is zero.
    """

    row: Expr
    column: int
    guards: tuple[Guard, ...] = ()

    @property
    def constant(self) -> bool:
        """Whether all rows are the same."""
        return not variables(self.row) and not self.guards


@dataclass(frozen=True)
class RunAccess:
    """Columns [k, k + run) of row m lie in a row at `start(m, k)`, zero outside of the guards."""

    start: Expr
    run: int
    guards: tuple[Guard, ...] = ()


def rows_of(shape: Shape) -> Shape:
    """The dimensions that make up the rows."""
    return shape[:-1]


def row_count(shape: Shape) -> tuple[int, bool]:
    """(rows per image or in all, whether they scale with the batch)."""
    rows = multiply(rows_of(shape))
    return (rows.count, True) if isinstance(rows, Batch) else (rows, False)


def _source(operand: Operand, result: Shape, column: Expr) -> Source | None:
    columns = per_image(result[-1:])
    coords = coordinates(result, Expr.of(M) * columns + column)
    if coords is None:
        return None
    index_map = operand.map
    if index_map.result != result:
        index_map = IndexMap(index_map.shape, (*index_map.views, Expand(result)))
    return source_of(index_map, coords)


def row_access(operand: Operand, result: Shape) -> RowAccess | None:
    """Access to an operand that broadcasts to `result`, or None when its columns are scattered."""
    column = Expr.of(Var(N, per_image(result[-1:])))
    source = _source(operand, result, column)
    if source is None or any(N in variables(guard.value) for guard in source.guards):
        return None
    stride = source.index.coefficient(N)
    if stride not in (0, 1):
        return None
    return RowAccess(source.index.without(N), stride, source.guards)


def run_access(operand: Operand, result: Shape) -> RunAccess | None:
    """Access in the longest runs that lie dense; run 1 in the worst case."""
    columns = per_image(result[-1:])
    for run in (r for r in range(columns, 0, -1) if columns % r == 0):
        lane = Var("j", run)
        column = Expr.of(Var("q", columns // run)) * run + Expr.of(lane)
        source = _source(operand, result, column)
        if source is None:
            return None
        guarded = any("j" in variables(guard.value) for guard in source.guards)
        if not guarded and (run == 1 or source.index.coefficient("j") == 1):
            # Kernels count k in elements: q = k / run.
            start = source.substitute({"j": Expr(), "q": Expr.of(Var("k", columns)) // run})
            return RunAccess(start.index, run, start.guards)
    return None


@dataclass(frozen=True)
class HeadAccess:
    """Element (b, h, n, d) of a [B, H, N, D] operand is data[row(b, n) + head * h + d].

    guards: conditions on b and n outside of which a loaded row is zero and a row is not stored.
    """

    row: Expr
    head: int
    guards: tuple[Guard, ...] = ()


def head_access(operand: Operand, result: Shape) -> HeadAccess | None:
    """Access to the heads of an attention with this result, or None where rows are scattered.

    A dimension of 1 in front (one k for all heads, one q for all images) is read for every b or h.
    """
    shape = operand.map.result
    if len(shape) != 4:
        return None
    batch, head, row, column = (
        Var(name, None if isinstance(dim, Batch) else dim)
        for name, dim in zip(("b", "h", "n", "d"), (*result[:2], *shape[2:]), strict=True)
    )
    shared = [dim == 1 for dim in shape]
    coords = [
        Expr() if one else Expr.of(var)
        for one, var in zip(shared, (batch, head, row, column), strict=True)
    ]
    source = source_of(operand.map, coords)
    if source is None:
        return None
    scattered = any({"h", "d"} & variables(guard.value) for guard in source.guards)
    stride, heads = source.index.coefficient("d"), source.index.coefficient("h")
    if scattered or heads is None or (stride != 1 and not shared[3]):
        return None
    return HeadAccess(source.index.without("d").without("h"), heads, source.guards)
