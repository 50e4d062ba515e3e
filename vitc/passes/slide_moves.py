"""Row maps slide towards the attention, past everything that works on rows.

A window is a map of rows. In front of an attention it goes behind the products that make q, k and
v, behind an attention before the projection: so products, norms and the residual stream keep the
image's own order, and the attention reads and stores windows through its maps.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import Expand, IndexMap, Pad, Slice
from vitc.ops import Attention, Concat, Linear, Literal, Move, Norm, Pointwise
from vitc.passes.clean import compose_moves, drop_identity
from vitc.passes.maps import canonical, columns_read, keeps_columns, with_columns
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, main_operands

ROW_WISE = (Linear, Norm, Pointwise)


def _is_vector(operand: Value) -> bool:
    return all(dim == 1 for dim in operand.shape[:-1])


def _row_wise(match: Match, name: str) -> tuple[Node, Linear | Norm | Pointwise] | None:
    """The node that makes the value when it works on each row of its first operand apart."""
    node = match.producers.get(name)
    if node is None or not isinstance(node.op, ROW_WISE) or node.op.stats:
        return None
    same_rows = match.types[node.inputs[0]].shape[:-1] == match.types[name].shape[:-1]
    fixed = not isinstance(node.op, Linear) or match.is_constant(node.inputs[1])
    return (node, node.op) if same_rows and fixed and not match.is_constant(name) else None


def _is_attended(match: Match, name: str) -> bool:
    """Whether rows of an attention make the value, with nothing else of the image added yet."""
    node = match.producers.get(name)
    while node is not None:
        if isinstance(node.op, Attention):
            return True
        if not isinstance(node.op, Move):
            found = _row_wise(match, node.output)
            if found is None or not all(
                step.operand is None or _is_vector(step.operand)
                for step in bound_steps(match, *found)
            ):
                return False
        node = match.producers.get(node.inputs[0])
    return False


@rule
def move_behind_rows(match: Match, node: Node) -> Replacement:
    """f(move(x), o) = move(f(x, move^-1(o))) for row-wise f, in front of an attention"""
    moved = match.producer(node.inputs[0], Move) if node.inputs else None
    if moved is None or _row_wise_node(match, node) is None or _is_attended(match, moved[0].output):
        return None
    if any(isinstance(view, Slice | Expand) for view in moved[1].map.views):
        return None
    before, index_map = _sliding_part(moved[1].map)
    if not keeps_columns(moved[1].map) or not index_map.views:
        return None
    x = match.value(moved[0].inputs[0])
    if before.views:
        match.build.hint, match.build.loc = moved[0].output, moved[0].loc
        x = match.build.emit(Move(before), x)
    result = _on_rows(match, node, x, lambda operand: _unmoved(match, operand, index_map))
    if result is None:
        return None
    width = match.types[node.output].shape[-1]
    return match.build.emit(Move(with_columns(index_map, width)), result)


def _row_wise_node(match: Match, node: Node) -> Linear | Norm | Pointwise | None:
    """As `_row_wise`, for the node at hand, whose results are not known as made yet."""
    op = node.op
    if not isinstance(op, ROW_WISE) or op.stats or match.is_constant(node.output):
        return None
    same_rows = match.types[node.inputs[0]].shape[:-1] == match.types[node.output].shape[:-1]
    fixed = not isinstance(op, Linear) or match.is_constant(node.inputs[1])
    return op if same_rows and fixed else None


def _sliding_part(index_map: IndexMap) -> tuple[IndexMap, IndexMap]:
    """The map as (what must stay in front, the permutation of rows behind it)."""
    views, shape, cut = index_map.views, index_map.shape, 0
    for i, view in enumerate(views):
        if isinstance(view, Pad):
            cut = i + 1
    before = IndexMap(shape, views[:cut])
    return before, IndexMap(before.result, views[cut:])


def _unmoved(match: Match, operand: Value, index_map: IndexMap) -> Value | None:
    """The operand in the order before the map, when that takes no movement of memory."""
    if _is_vector(operand):
        columns = operand.shape[-1:]
        return match.build.reshape(operand, columns) if len(operand.shape) > 1 else operand
    if operand.shape[:-1] != index_map.result[:-1]:
        return None
    moved = match.producer(operand.name, Move)
    source = operand if moved is None else match.value(moved[0].inputs[0])
    made = IndexMap(operand.shape) if moved is None else moved[1].map
    inverse = with_columns(index_map, operand.shape[-1]).inverse()
    if inverse is None:
        return None
    back = canonical(made.compose(inverse))
    if not back.is_identity:
        return None
    match.build.hint = operand.name
    return match.build.reshape(source, back.result)


def _on_rows(
    match: Match, node: Node, x: Value, seen: Callable[[Value], Value | None]
) -> Value | None:
    """The row-wise node on other rows x; `seen` says what becomes of an operand of its steps."""
    op = node.op
    assert isinstance(op, ROW_WISE)
    steps: list[Bound] = []
    for step in bound_steps(match, node, op):
        operand = step.operand and seen(step.operand)
        if step.operand is not None and operand is None:
            return None
        steps.append(replace(step, operand=operand))
    _, *rest = main_operands(match, node, op)
    match.build.loc, match.build.hint = node.loc, node.output
    return emit_steps(match.build, op, (x, *rest), steps)[0]


@rule
def move_before_rows(match: Match, node: Node) -> Replacement:
    """move(f(x)) = f(move(x)) for row-wise f, behind an attention"""
    op = node.op
    made = _row_wise(match, node.inputs[0]) if isinstance(op, Move) else None
    if made is None or not isinstance(op, Move) or not match.single_use(node.inputs[0]):
        return None
    views = op.map.views
    if any(isinstance(view, Pad | Expand) for view in views) or not keeps_columns(op.map):
        return None
    if not _is_attended(match, node.inputs[0]):
        return None
    x = match.value(made[0].inputs[0])
    match.build.hint, match.build.loc = x.name, made[0].loc
    moved = match.build.emit(Move(with_columns(op.map, x.shape[-1])), x)
    return _on_rows(match, made[0], moved, lambda operand: operand if _is_vector(operand) else None)


@rule
def pad_behind_product(match: Match, node: Node) -> Replacement:
    """move(attention(pad(x) w^T + b)) = move(attention(pad(x w^T + b))), b on rows not read or zero

    Windows that reach over the image's edge hold rows of zeros there: their k and v are the bias,
    which is zero by now (drop_k_bias, fold_v_bias), and what they ask for themselves is cropped.
    """
    op = node.op
    made = match.producer(node.inputs[0], Attention) if isinstance(op, Move) else None
    if made is None or not isinstance(op, Move) or not match.single_use(made[0].output):
        return None
    moves = [match.producer(name, Move) for name in made[0].inputs[:3]]
    qkv = [moved for moved in moves if moved is not None]
    if len(qkv) != 3 or len({moved.inputs[0] for moved, _ in qkv}) != 1:
        return None
    product = match.producer(qkv[0][0].inputs[0], Linear)
    padded = match.producer(product[0].inputs[0], Move) if product is not None else None
    if product is None or padded is None or not match.is_constant(product[0].inputs[1]):
        return None
    pad = padded[1].map
    private = len(match.readers(product[0].output)) == 3 and not match.is_output(product[0].output)
    if not private or product[1].stats or not pad.moves_zeros or not keeps_columns(pad):
        return None
    bias = _bias_columns(match, *product)
    keys = columns_read(qkv[1][1].map) | columns_read(qkv[2][1].map)
    if bias is None or bool((bias & keys).any()):
        return None
    behind = with_columns(pad, match.types[product[0].output].shape[-1])
    if bool(_asks_for_padding(op.map, behind.compose(qkv[0][1].map))):
        return None
    x = match.value(padded[0].inputs[0])
    linear = _on_rows(match, product[0], x, lambda operand: operand)
    assert linear is not None
    operands: list[Value] = []
    for moved, move in qkv:
        match.build.hint = moved.output
        operands.append(match.build.emit(Move(canonical(behind.compose(move.map))), linear))
    match.build.loc, match.build.hint = made[0].loc, made[0].output
    attended = match.build.emit(made[1], *operands, *match.values(made[0])[3:])
    match.build.loc, match.build.hint = node.loc, node.output
    return match.build.emit(op, attended)


def _bias_columns(match: Match, node: Node, op: Linear) -> NDArray[np.bool_] | None:
    """Which columns of the product have a bias; None where steps do more than add one."""
    steps, shape = bound_steps(match, node, op), match.types[node.output].shape[-1:]
    columns = np.ones(shape[0] if isinstance(shape[0], int) else 1, bool)
    if not steps:
        return ~columns
    bias = steps[0].operand
    if len(steps) != 1 or steps[0].kind != "add" or bias is None or bias.shape != shape:
        return None
    return _nonzero(match, bias.name)


def _nonzero(match: Match, name: str) -> NDArray[np.bool_]:
    """Where a constant vector may be other than zero, whatever the weights are."""
    node = match.producers.get(name)
    if node is not None and isinstance(node.op, Literal):
        return node.op.array != 0
    if node is not None and isinstance(node.op, Concat):
        return np.concatenate([_nonzero(match, part) for part in node.inputs])
    if node is not None and isinstance(node.op, Pointwise):
        kept = _nonzero(match, node.inputs[0])
        for step in bound_steps(match, node, node.op):
            if step.operand is None or step.operand.shape != kept.shape or step.kind != "mul":
                return np.ones(kept.shape, bool) if step.kind != "scale" else kept
            kept = kept & _nonzero(match, step.operand.name)
        return kept
    return np.ones([dim for dim in match.types[name].shape if isinstance(dim, int)], bool)


@lru_cache(maxsize=64)
def _asks_for_padding(result: IndexMap, query: IndexMap) -> bool:
    """Whether some row of `result` comes from a query that is padding."""
    zeros = (query.row_offsets(1) < 0).any(-1)
    read = result.row_offsets(1)
    read = read[read >= 0] // result_depth(result)
    return bool(np.reshape(zeros, -1)[read].any())


def result_depth(result: IndexMap) -> int:
    """Columns of a head in the attention's result, which is the map's source."""
    depth = result.shape[-1]
    assert isinstance(depth, int)
    return depth


RULES = (
    move_behind_rows,
    move_before_rows,
    pad_behind_product,
    compose_moves,
    drop_identity,
)


def slide_moves(graph: Graph, options: PassOptions) -> Graph:
    """No row-wise op reads windows in front of an attention or has its rows moved behind one."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
