"""What a normalisation (or any row-wise work) scales and shifts last goes into the next weights."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import IndexMap
from vitc.ir.types import per_image, shape_at
from vitc.ops import Fused, Linear, Move, Norm, Pointwise, Reduce
from vitc.passes.affine import KINDS, Affine, affine_suffix, composed
from vitc.passes.fold_affine import merge_constant_adds
from vitc.passes.maps import source_columns
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.selection import picked
from vitc.passes.steps import (
    Bound,
    bound_steps,
    emit_steps,
    is_plain,
    main_operands,
    with_steps,
)


def _split(match: Match, name: str) -> tuple[Node, Fused, list[Bound], list[Bound]] | None:
    """The row-wise node that makes the value, its steps, and the affine ones at their end.

    None unless every reader can take those.
    """
    kinds = (Norm, Pointwise, Reduce)
    made = next((m for kind in kinds if (m := match.producer(name, kind)) is not None), None)
    if made is None or not is_plain(made[1]) or match.is_constant(name):
        return None
    columns = per_image(match.types[name].shape[-1:])
    steps = bound_steps(match, *made)
    count = affine_suffix(match, steps, columns)
    widens = isinstance(made[1], Pointwise) and (
        match.types[made[0].inputs[0]].shape != match.types[name].shape
    )
    if count == 0 or widens or match.is_output(name) or not _all_absorb(match, name):
        return None
    return made[0], made[1], steps[:-count], steps[-count:]


def _all_absorb(match: Match, name: str) -> bool:
    """Whether all readers are linears, perhaps behind moves and means that change no channel."""
    readers = match.readers(name)
    return bool(readers) and all(_absorbs(match, name, reader) for reader in readers)


def _absorbs(match: Match, name: str, reader: Node) -> bool:
    op = reader.op
    operands = [match.current(operand) for operand in reader.inputs]
    if isinstance(op, Linear):
        return operands.count(name) == 1 and operands[0] == name and match.is_constant(operands[1])
    if isinstance(op, Move):
        passes_on = _same_in_all_rows(op) is not None
    else:
        passes_on = _is_row_mean(match, reader) and operands[0] == name
    return passes_on and not match.is_output(reader.output) and _all_absorb(match, reader.output)


def _is_row_mean(match: Match, node: Node) -> bool:
    if not isinstance(node.op, Reduce):
        return False
    rank = match.types[node.inputs[0]].rank
    return (
        node.op.kind == "mean"
        and is_plain(node.op)
        and not node.op.steps
        and all(axis % rank != rank - 1 for axis in node.op.axes)
    )


def _same_in_all_rows(op: Move) -> NDArray[np.int64] | None:
    """The source column of each result column, when it is the same in all rows."""
    columns = source_columns(op.map)
    if columns.ndim == 0 or columns.min() < 0:
        return None
    rows = np.reshape(columns, (-1, columns.shape[-1]))
    return rows[0] if (rows == rows[0]).all() else None


@rule
def affine_into_readers(match: Match, node: Node) -> Replacement:
    """(f(x) s + t) w^T = f(x) (w s)^T + w t"""
    op = node.op
    found = _split(match, node.inputs[0]) if isinstance(op, Linear) else None
    if found is None or not isinstance(op, Linear):
        return None
    source, inner, before, tail = found
    x, w = main_operands(match, node, op)
    steps = bound_steps(match, node, op)
    stripped = _strip(match, source, inner, before)
    match.build.hint = w.name
    affine = composed(match, tail, per_image(x.shape[-1:]))
    scaled = affine.scale_weight(match.build, w, 1)
    if affine.shift is not None:
        steps.insert(0, Bound("add", match.build.linear(affine.shift, w)))
    match.build.hint = node.output
    return emit_steps(match.build, op, (stripped, scaled), steps)


@rule
def affine_through_move(match: Match, node: Node) -> Replacement:
    """move(f(x) s + t) = move(f(x)) move(s) + move(t), where all rows move their columns alike"""
    op = node.op
    found = _split(match, node.inputs[0]) if isinstance(op, Move) else None
    if found is None or not isinstance(op, Move):
        return None
    order = _same_in_all_rows(op)
    if order is None:
        return None
    source, inner, before, tail = found
    affine = composed(match, tail, per_image(match.types[node.inputs[0]].shape[-1:]))
    moved = match.build.emit(op, _strip(match, source, inner, before))
    return emit_steps(match.build, Pointwise(), (moved,), _picked(match, affine, order).steps())


@rule
def constants_through_move(match: Match, node: Node) -> Replacement:
    """move(x s + t) = move(x) move(s) + move(t) for constants that all rows see alike"""
    op = node.op
    made = match.producer(node.inputs[0], Pointwise) if isinstance(op, Move) else None
    if made is None or not isinstance(op, Move) or not is_plain(made[1]) or not made[1].steps:
        return None
    x = match.value(made[0].inputs[0])
    same_shape = x.shape == op.map.shape and not match.is_constant(x.name)
    readers_absorb = not match.is_output(node.output) and _all_absorb(match, node.output)
    if not (same_shape and readers_absorb and match.single_use(made[0].output)):
        return None
    steps: list[Bound] = []
    for step in bound_steps(match, *made):
        operand = step.operand and _seen_by_rows(match, step.operand, op.map)
        if step.kind not in KINDS or (step.operand is not None and operand is None):
            return None
        steps.append(replace(step, operand=operand))
    return emit_steps(match.build, Pointwise(), (match.build.emit(op, x),), steps)


def _seen_by_rows(match: Match, constant: Value, index_map: IndexMap) -> Value | None:
    """[columns]: the constant, broadcast and moved, when that is the same in all rows."""
    if not match.is_constant(constant.name):
        return None
    size = per_image(constant.shape)
    numbers = np.reshape(np.arange(1, size + 1), shape_at(constant.shape, 1))
    spread = np.broadcast_to(numbers, shape_at(index_map.shape, 1))
    moved = index_map.apply(np.ascontiguousarray(spread))
    rows = np.reshape(moved, (-1, moved.shape[-1])) - 1
    if rows.min() < 0 or not (rows == rows[0]).all():
        return None
    hint, match.build.hint = match.build.hint, constant.name
    result = picked(match.build, match.build.reshape(constant, (size,)), rows[0])
    match.build.hint = hint
    return result


@rule
def affine_through_mean(match: Match, node: Node) -> Replacement:
    """mean over rows of (f(x) s + t) = (mean over rows of f(x)) s + t"""
    op = node.op
    found = _split(match, node.inputs[0]) if _is_row_mean(match, node) else None
    if found is None or not isinstance(op, Reduce):
        return None
    source, inner, before, tail = found
    stripped = _strip(match, source, inner, before)
    affine = composed(match, tail, per_image(stripped.shape[-1:]))
    return emit_steps(match.build, Pointwise(), (match.build.emit(op, stripped),), affine.steps())


def _strip(match: Match, source: Node, op: Fused, steps: list[Bound]) -> Value:
    """The row-wise node without its last steps; all readers share one."""
    if isinstance(op, Pointwise) and not steps:
        return match.value(source.inputs[0])
    hint, loc, build = match.build.hint, match.build.loc, match.build
    finished, operands = with_steps(op, steps)
    mains = main_operands(match, source, op)
    names = tuple(value.name for value in (*mains, *operands))
    twin = match.twin(Node(finished, names, ()))
    if twin is not None:
        return match.value(twin.output)
    build.hint, build.loc = source.output, source.loc
    result = build.emit(finished, *mains, *operands)
    build.hint, build.loc = hint, loc
    return result


def _picked(match: Match, affine: Affine, order: NDArray[np.int64]) -> Affine:
    return replace(
        affine,
        columns=len(order),
        scale=affine.scale and picked(match.build, affine.scale, order),
        shift=affine.shift and picked(match.build, affine.shift, order),
    )


RULES = (
    affine_into_readers,
    affine_through_move,
    constants_through_move,
    affine_through_mean,
    merge_constant_adds,
)


def fold_norm_affine(graph: Graph, options: PassOptions) -> Graph:
    """No norm scales or shifts its channels when all that reads it are linears."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
