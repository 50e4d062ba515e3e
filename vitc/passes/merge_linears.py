"""Products of one input: merged where their results meet again, split where they part."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import IndexMap, Slice
from vitc.ir.types import per_image
from vitc.ops import Attention, Concat, Linear, Move, Pointwise
from vitc.ops.fused import ROW_SCALES
from vitc.passes.affine import as_vector
from vitc.passes.maps import canonical, columns_read, is_bijective
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, main_operands


def _bias(match: Match, node: Node, op: Linear) -> Value | bool | None:
    """The constant bias of a linear with nothing else on it; None without one; False otherwise."""
    steps = bound_steps(match, node, op)
    if not steps:
        return None
    columns = per_image(match.types[node.output].shape[-1:])
    operand = steps[0].operand
    if len(steps) > 1 or steps[0].kind != "add" or operand is None:
        return False
    vector = as_vector(match, operand, columns)
    return False if vector is None else vector


def _zeros(match: Match, weight: Value) -> Value:
    return match.build.literal(np.zeros(per_image(weight.shape[:1]), np.float32))


@rule
def merge_qkv(match: Match, node: Node) -> Replacement:
    """attention(x a^T, x b^T, x c^T) = attention(slices of x [a b c]^T)"""
    op = node.op
    if not isinstance(op, Attention):
        return None
    branches: list[tuple[Node, Node, Linear, Move]] = []
    for name in node.inputs[:3]:
        moved = match.producer(name, Move)
        made = match.producer(moved[0].inputs[0], Linear) if moved is not None else None
        if moved is None or made is None or not is_bijective(moved[1].map) or made[1].stats:
            return None
        private = match.single_use(name) and match.single_use(made[0].output)
        if not private or not match.is_constant(made[0].inputs[1]):
            return None
        branches.append((moved[0], *made, moved[1]))
    if len({made.inputs[0] for _, made, _, _ in branches}) != 1:
        return None
    if len({match.types[made.output].shape[:-1] for _, made, _, _ in branches}) != 1:
        return None
    biases = [_bias(match, made, linear) for _, made, linear, _ in branches]
    if any(bias is False for bias in biases):
        return None
    build = match.build
    build.hint = branches[0][1].inputs[1]
    weights = [match.value(made.inputs[1]) for _, made, _, _ in branches]
    w = build.concat(weights, 0)
    steps: list[Bound] = []
    if any(isinstance(bias, Value) for bias in biases):
        vectors = [
            bias if isinstance(bias, Value) else _zeros(match, weight)
            for bias, weight in zip(biases, weights, strict=True)
        ]
        steps = [Bound("add", build.concat(vectors, 0))]
    build.loc, build.hint = branches[0][1].loc, branches[0][1].output
    joined = emit_steps(build, Linear(), (match.value(branches[0][1].inputs[0]), w), steps)[0]
    operands, start = list[Value](), 0
    for moved, _, _, move in branches:
        width = per_image(move.map.shape[-1:])
        cut = Slice(len(joined.shape) - 1, start, start + width)
        build.hint = moved.output
        views = canonical(IndexMap(joined.shape, (cut, *move.map.views)))
        operands.append(build.emit(Move(views), joined))
        start += width
    build.loc, build.hint = node.loc, node.output
    return build.emit_all(op, *operands, *match.values(node)[3:])


@rule
def split_gate(match: Match, node: Node) -> Replacement:
    """columns of (x w^T) = x (rows of w)^T, where a pointwise reads them and can ride along then"""
    cut = _column_slice(node)
    made = match.producer(node.inputs[0], Linear) if cut is not None else None
    if made is None or cut is None or not match.is_constant(made[0].inputs[1]) or made[1].stats:
        return None
    readers = match.readers(node.output)
    if len(readers) != 1 or not isinstance(readers[0].op, Pointwise):
        return None
    if not _reads_apart(match, node, made[0]):
        return None
    source, op = made
    build = match.build

    def part(value: Value, axis: int) -> Value:
        build.hint = value.name
        if not value.shape or value.shape[axis] == 1:
            return value
        return build.view(value, Slice(axis % len(value.shape), cut.start, cut.stop, cut.step))

    x, w = main_operands(match, source, op)
    steps = [
        step
        if step.operand is None or step.kind in ROW_SCALES
        else replace(step, operand=part(step.operand, -1))
        for step in bound_steps(match, source, op)
    ]
    w = part(w, 0)
    build.loc, build.hint = source.loc, node.output
    return emit_steps(build, op, (x, w), steps)


def _column_slice(node: Node) -> Slice | None:
    """The slice of columns that is all the node does."""
    views = node.op.map.views if isinstance(node.op, Move) else ()
    if len(views) != 1 or not isinstance(views[0], Slice) or not isinstance(node.op, Move):
        return None
    return views[0] if views[0].axis == len(node.op.map.shape) - 1 else None


def _reads_apart(match: Match, node: Node, source: Node) -> bool:
    """Whether all other readers are moves of other columns."""
    assert isinstance(node.op, Move)
    mask = columns_read(node.op.map)
    if match.is_output(source.output):
        return False
    for reader in match.readers(source.output):
        if match.current(reader.output) == node.output:
            continue
        if not isinstance(reader.op, Move) or bool((columns_read(reader.op.map) & mask).any()):
            return False
    return True


@rule
def split_joined(match: Match, node: Node) -> Replacement:
    """[a b] [u v]^T = a u^T + b v^T, which saves joining a and b"""
    op = node.op
    made = match.producer(node.inputs[0], Concat) if isinstance(op, Linear) else None
    if made is None or not isinstance(op, Linear) or op.stats or match.is_constant(node.output):
        return None
    joined, concat = made
    rank = match.types[joined.output].rank
    fits = concat.axis == rank - 1 and match.single_use(joined.output)
    if not fits or not match.is_constant(node.inputs[1]):
        return None
    if any(match.is_constant(name) for name in joined.inputs):
        return None
    w, steps, start = match.value(node.inputs[1]), bound_steps(match, node, op), 0
    parts: list[tuple[Value, Value]] = []
    for x in map(match.value, joined.inputs):
        width = per_image(x.shape[-1:])
        match.build.hint = w.name
        parts.append((x, match.build.slice(w, 1, start, start + width)))
        start += width
    match.build.hint = node.output
    first, *rest = parts
    sums = [Bound("add", match.build.linear(x, part)) for x, part in rest]
    return emit_steps(match.build, op, first, [*sums, *steps])


RULES = (merge_qkv, split_gate, split_joined)


def merge_linears(graph: Graph, options: PassOptions) -> Graph:
    """Separate q, k, v products of one input are one; gate halves are apart, so steps can ride."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
