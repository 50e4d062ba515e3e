"""Row sources: where the tiles of a product's left operand come from (vitc/gpu/source.cuh)."""

from __future__ import annotations

from dataclasses import dataclass

from vitc.codegen.access import row_access, row_count, run_access
from vitc.codegen.kernel import Operand
from vitc.codegen.targets.gpu.epilogue import C_TYPES, multiples
from vitc.ir.expr import Expr, Guard, variables
from vitc.ir.types import DType, Shape, per_image


@dataclass(frozen=True)
class RowSource:
    """Parameters of the source functor in templates/gpu/functors.jinja.

    type: of the stored elements. start: base pointer. vector: whether chunks (16 bytes as stored or
    as loaded, whichever has more elements) lie whole and aligned. row: offset of a row, in m.
    column: what element k adds to it, in k; where the two cannot be told apart, `row` is "" and
    `column` is the whole offset in m and k. guard: condition on m outside of which the row is zero.
    inner: condition on m and k outside of which an element is.
    """

    type: str
    start: str
    vector: bool
    row: str
    column: str
    guard: str
    inner: str = ""


def row_source(
    operand: Operand, shape: Shape, index: int = 0, loaded: DType | None = None
) -> RowSource:
    """The source that reads rows of `shape` [..., K] out of the stored operand; loaded: the type
    of 16-byte chunks in shared memory, where that is another than the stored one.
    """
    type_, stored = C_TYPES[operand.type.dtype], operand.type.dtype
    chunk = 16 // min(stored.itemsize, (loaded or stored).itemsize)
    start = f"arg<const {type_}>(call, {index})"
    access = row_access(operand, shape)
    if access is not None and access.column == 1:
        aligned = multiples(access.row, chunk) and per_image(shape[-1:]) % chunk == 0
        return RowSource(type_, start, aligned, str(access.row), "k", _text(access.guards))
    runs = run_access(operand, shape)
    assert runs is not None, operand.map
    guard = _text(tuple(g for g in runs.guards if "k" not in variables(g.value)))
    inner = _text(tuple(g for g in runs.guards if "k" in variables(g.value)))
    parts = _separate(runs.start)
    if parts is None:
        column = f"{runs.start} + k % {runs.run}"
        return RowSource(type_, start, False, "", column, guard, inner)
    row, column = parts
    aligned = runs.run % chunk == 0 and multiples(row, chunk) and multiples(column, chunk)
    column = f"{column} + k % {runs.run}"
    return RowSource(type_, start, aligned, str(row), column, guard, inner)


def _text(guards: tuple[Guard, ...]) -> str:
    return " && ".join(str(guard) for guard in guards)


def _separate(expr: Expr) -> tuple[Expr, Expr] | None:
    """(terms of m with the constant, terms of k), or None where one term has both."""
    row, column = Expr((), expr.constant), Expr()
    for atom, coefficient in expr.terms:
        names = variables(Expr.of(atom))
        if names == frozenset(("k",)):
            column = column + Expr.of(atom) * coefficient
        elif "k" in names:
            return None
        else:
            row = row + Expr.of(atom) * coefficient
    return row, column


def row_total(shape: Shape) -> str:
    """The number of rows of one call, as a C++ expression."""
    rows, batched = row_count(shape)
    return f"int(call.batch) * {rows}" if batched else str(rows)
