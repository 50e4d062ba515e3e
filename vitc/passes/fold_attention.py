"""Softmax's invariances: the scale goes into q's weight, k's bias away, v's bias behind.

The operands of an attention are columns of linears. A changed linear replaces the old one only
where nothing but this attention reads it, so no product is computed twice.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.types import per_image, shape_at
from vitc.ops import Attention, Linear, Literal, Move, Norm, Pointwise
from vitc.passes.fold_affine import merge_constant_adds
from vitc.passes.maps import columns_read, source_columns
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.selection import picked
from vitc.passes.steps import Bound, bound_steps, emit_steps, main_operands

Q, K, V = 0, 1, 2


@dataclass(frozen=True)
class _Source:
    """The linear whose columns an attention's operand is, moved and no more."""

    node: Node
    op: Linear
    move: Move
    mask: NDArray[np.bool_]

    @property
    def name(self) -> str:
        return self.node.output


def _source(match: Match, attention: Node, index: int) -> _Source | None:
    """None unless the operand is a move of a linear that serves this attention alone."""
    moved = match.producer(attention.inputs[index], Move)
    made = match.producer(moved[0].inputs[0], Linear) if moved is not None else None
    if moved is None or made is None or made[1].stats or not match.is_constant(made[0].inputs[1]):
        return None
    name = made[0].output
    if match.is_constant(name):
        return None
    if match.is_output(name) or not all(
        _leads_to(match, r, attention) for r in match.readers(name)
    ):
        return None
    mask = columns_read(moved[1].map)
    for reader in match.readers(name):
        same = reader.output == moved[0].output or match.current(reader.output) == moved[0].output
        if not isinstance(reader.op, Move):
            return None
        if not same and bool((columns_read(reader.op.map) & mask).any()):
            return None
    if not match.single_use(moved[0].output):
        return None
    return _Source(made[0], made[1], moved[1], mask)


def _leads_to(match: Match, reader: Node, attention: Node) -> bool:
    """Whether the reader's result goes nowhere but into the attention."""
    if reader.output == attention.output:
        return True
    after = match.readers(reader.output)
    return (
        isinstance(reader.op, Move | Norm | Pointwise)
        and not match.is_output(reader.output)
        and bool(after)
        and all(_leads_to(match, r, attention) for r in after)
    )


def _on_new(match: Match, name: str, old: str, new: Value) -> Value:
    """The value recomputed with `new` in the place of `old`."""
    if name == old:
        return new
    node = match.producers.get(name)
    if node is None or match.is_constant(name) or not isinstance(node.op, Move | Norm | Pointwise):
        return match.value(name)
    operands = [_on_new(match, operand, old, new) for operand in node.inputs]
    if all(a.name == b for a, b in zip(operands, node.inputs, strict=True)):
        return match.value(name)
    match.build.hint = name
    return match.build.emit(node.op, *operands)


def _rebuilt(match: Match, node: Node, op: Attention, old: str, new: Value) -> tuple[Value, ...]:
    """The attention with all operands recomputed on the new linear."""
    operands = [_on_new(match, name, old, new) for name in node.inputs]
    match.build.hint = node.output
    return match.build.emit_all(op, *operands)


def _bias(match: Match, source: _Source) -> Value | None:
    """The bias [N] when that is all that rides on the linear."""
    steps = bound_steps(match, source.node, source.op)
    columns = per_image(match.types[source.name].shape[-1:])
    if len(steps) != 1 or steps[0].kind != "add" or steps[0].operand is None:
        return None
    bias = steps[0].operand
    return bias if bias.shape == (columns,) and match.is_constant(bias.name) else None


def _mask(match: Match, bias: Value) -> tuple[Value, NDArray[np.bool_]]:
    """The bias before columns of it were dropped, and which are left."""
    made = match.producer(bias.name, Pointwise)
    if made is not None and made[1].steps and made[1].steps[-1].kind == "mul":
        steps = bound_steps(match, *made)
        literal = match.producer(steps[-1].operand.name if steps[-1].operand else "", Literal)
        if literal is not None and literal[1].shape == bias.shape:
            kept = literal[1].array
            if bool(np.isin(kept, (0, 1)).all()):
                return emit_steps(match.build, made[1], main_operands(match, *made), steps[:-1])[
                    0
                ], kept != 0
    return bias, np.ones(per_image(bias.shape), bool)


def _without_columns(
    match: Match, source: _Source, bias: Value, columns: NDArray[np.bool_]
) -> Value | None:
    """The linear with the bias dropped in `columns`; None where it is dropped already."""
    whole, kept = _mask(match, bias)
    left = kept & ~columns
    if (left == kept).all():
        return None
    match.build.hint, match.build.loc = bias.name, source.node.loc
    steps: list[Bound] = []
    if left.any():
        mask = match.build.literal(left.astype(np.float32))
        steps = [Bound("add", match.build.binary("mul", whole, mask))]
    match.build.hint = source.name
    return emit_steps(match.build, source.op, main_operands(match, source.node, source.op), steps)[
        0
    ]


@rule
def fold_softmax_scale(match: Match, node: Node) -> Replacement:
    """attention(x w^T, k) with scale c = attention(x (c w)^T, k)"""
    op = node.op
    if not isinstance(op, Attention) or op.scale == 1.0 or op.cosine is not None:
        return None
    if match.is_constant(node.inputs[Q]):
        match.build.hint = node.inputs[Q]
        q = match.build.scale(match.value(node.inputs[Q]), op.scale)
        match.build.hint = node.output
        return match.build.emit_all(replace(op, scale=1.0), q, *match.values(node)[1:])
    source = _source(match, node, Q)
    if source is None or len(source.op.steps) > 1:
        return _scale_into_norm(match, node, op)
    bias = _bias(match, source)
    if source.op.steps and bias is None:
        return None
    x, w = main_operands(match, source.node, source.op)
    build = match.build
    build.loc = source.node.loc
    factor: Value | float = op.scale
    if not source.mask.all():
        factor = build.literal(np.where(source.mask, op.scale, 1.0))
    build.hint = w.name
    w = _times(match, w, factor, column=True)
    steps: list[Bound] = []
    if bias is not None:
        build.hint = bias.name
        steps = [Bound("add", _times(match, bias, factor, column=False))]
    build.hint = source.name
    new = emit_steps(build, source.op, (x, w), steps)[0]
    build.loc = node.loc
    return _rebuilt(match, node, replace(op, scale=1.0), source.name, new)


def _times(match: Match, constant: Value, factor: Value | float, *, column: bool) -> Value:
    if not isinstance(factor, Value):
        return match.build.scale(constant, factor)
    rows = match.build.reshape(factor, (*factor.shape, 1)) if column else factor
    return match.build.binary("mul", constant, rows)


def _scale_into_norm(match: Match, node: Node, op: Attention) -> Replacement:
    """Where q is normalised, its gamma and beta take the factor."""
    moves: list[Node] = []
    name = node.inputs[Q]
    while (moved := match.producer(name, Move)) is not None and match.single_use(name):
        moves.insert(0, moved[0])
        name = moved[0].inputs[0]
    made = match.producer(name, Norm)
    if made is None or not match.single_use(name):
        return None
    steps = bound_steps(match, *made)
    kinds = [step.kind for step in steps]
    constant = all(step.operand and match.is_constant(step.operand.name) for step in steps)
    if kinds not in (["mul"], ["mul", "add"]) or not constant or made[1].stats:
        return None
    scaled: list[Bound] = []
    for step in steps:
        assert step.operand is not None
        match.build.hint = step.operand.name
        scaled.append(replace(step, operand=match.build.scale(step.operand, op.scale)))
    match.build.hint, match.build.loc = made[0].output, made[0].loc
    q = emit_steps(match.build, made[1], main_operands(match, *made), scaled)[0]
    for move in moves:
        match.build.hint = move.output
        q = match.build.emit(move.op, q)
    match.build.hint, match.build.loc = node.output, node.loc
    rest = match.values(node)[1:]
    return match.build.emit_all(replace(op, scale=1.0), q, *rest)


@rule
def drop_k_bias(match: Match, node: Node) -> Replacement:
    """attention(q, k + b) = attention(q, k): q b is the same for all keys"""
    source = _source(match, node, K) if isinstance(node.op, Attention) else None
    bias = _bias(match, source) if source is not None else None
    if source is None or bias is None or not isinstance(node.op, Attention):
        return None
    if node.op.cosine is not None:  # k's length, which the bias changes, counts
        return None
    if _per_token(source) is None:
        return None
    new = _without_columns(match, source, bias, source.mask)
    return None if new is None else _rebuilt(match, node, node.op, source.name, new)


def _per_token(source: _Source) -> NDArray[np.int64] | None:
    """[1, H, d]: the linear's column that each element of a token is, the same for all tokens."""
    columns = source_columns(source.move.map)
    if columns.min() < 0 or not (columns == columns[:, :, :1]).all():
        return None
    return columns[:, :, 0]


@rule
def fold_v_bias(match: Match, node: Node) -> Replacement:
    """linear(attention(q, k, v + b), w) = linear(attention(q, k, v), w) + w b"""
    op = node.op
    moved = match.producer(node.inputs[0], Move) if isinstance(op, Linear) else None
    if moved is None or not isinstance(op, Linear) or not match.is_constant(node.inputs[1]):
        return None
    made = match.producer(moved[0].inputs[0], Attention)
    if made is None or made[1].steps or not is_private(match, moved[0], made[0]):
        return None
    source = _source(match, made[0], V)
    bias = _bias(match, source) if source is not None else None
    order = _projected(match, made[0], moved[1], source) if source is not None else None
    if source is None or bias is None or order is None:
        return None
    new = _without_columns(match, source, bias, source.mask)
    if new is None:
        return None
    match.build.loc, match.build.hint = made[0].loc, made[0].output
    attended = _rebuilt(match, made[0], made[1], source.name, new)[0]
    match.build.loc, match.build.hint = node.loc, moved[0].output
    x = match.build.emit(moved[1], attended)
    w = match.value(node.inputs[1])
    match.build.hint = bias.name
    passed = match.build.linear(picked(match.build, bias, order), w)
    match.build.hint = node.output
    steps = [Bound("add", passed), *bound_steps(match, node, op)]
    return emit_steps(match.build, op, (x, w), steps)


def is_private(match: Match, move: Node, attention: Node) -> bool:
    """Whether the projection alone reads the attention's result."""
    return match.single_use(move.output) and match.single_use(attention.output)


def _projected(
    match: Match, attention: Node, move: Move, source: _Source
) -> NDArray[np.int64] | None:
    """For each input channel of the projection, the column of v's linear it averages."""
    per_token = _per_token(source)
    if per_token is None:
        return None
    shape = shape_at(match.types[attention.output].shape, 1)
    if per_token.shape != (shape[0], shape[1], shape[3]):
        return None
    spread = np.broadcast_to(per_token[:, :, None], shape)
    moved: NDArray[np.int64] = move.map.apply(np.ascontiguousarray(spread) + 1)
    rows = np.reshape(moved, (-1, moved.shape[-1]))
    if rows.min() < 1 or not (rows == rows[0]).all():
        return None
    return rows[0] - 1


RULES = (fold_softmax_scale, drop_k_bias, fold_v_bias, merge_constant_adds)


def fold_attention(graph: Graph, options: PassOptions) -> Graph:
    """Where linears make q, k and v: scale is 1, k has no bias, v's bias is in the projection's."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
