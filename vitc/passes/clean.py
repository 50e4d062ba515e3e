"""Clean-up: moves composed, duplicates and identities dropped, pointwise work merged."""

from __future__ import annotations

from dataclasses import replace

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import Reshape, Slice
from vitc.ops import Concat, Fused, Linear, Move, Norm, Pointwise, Reduce, Step
from vitc.ops.fused import ROW_SCALES
from vitc.passes.maps import canonical, is_bijective, keeps_columns
from vitc.passes.options import PassOptions
from vitc.passes.permutes import PERMUTE_RULES
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, is_plain, main_operands


@rule
def compose_moves(match: Match, node: Node) -> Replacement:
    """move(move(x, m1), m2) = move(x, m2 after m1)"""
    inner = match.producer(node.inputs[0], Move) if isinstance(node.op, Move) else None
    if inner is None or not isinstance(node.op, Move):
        return None
    composed = canonical(inner[1].map.compose(node.op.map))
    return match.build.emit(Move(composed), match.value(inner[0].inputs[0]))


@rule
def canonical_move(match: Match, node: Node) -> Replacement:
    """move(x, m) = move(x, canonical form of m)"""
    if not isinstance(node.op, Move) or (form := canonical(node.op.map)) == node.op.map:
        return None
    return match.build.emit(Move(form), match.value(node.inputs[0]))


@rule
def drop_identity(match: Match, node: Node) -> Replacement:
    """move(x, nothing) = x;  pointwise(x) without steps = x;  concat(x) = x"""
    if len(node.inputs) != 1 or match.types[node.inputs[0]] != match.types[node.output]:
        return None
    empty = (
        (isinstance(node.op, Move) and not canonical(node.op.map).views)
        or (isinstance(node.op, Pointwise) and not node.op.steps and not node.op.stats)
        or isinstance(node.op, Concat)
    )
    return match.value(node.inputs[0]) if empty else None


@rule
def share_equal(match: Match, node: Node) -> Replacement:
    """f(x); f(x) = f(x)"""
    twin = match.twin(node)
    return None if twin is None else tuple(match.value(name) for name in twin.outputs)


@rule
def merge_pointwise(match: Match, node: Node) -> Replacement:
    """pointwise(pointwise(x, s1), s2) = pointwise(x, s1 s2)"""
    inner = match.producer(node.inputs[0], Pointwise) if isinstance(node.op, Pointwise) else None
    if inner is None or not isinstance(node.op, Pointwise):
        return None
    before, op = inner
    if op.stats or op.dtype is not None or not match.single_use(before.output):
        return None
    if match.is_constant(before.output) and not match.is_constant(node.output):
        return None  # what can be computed once is not computed for each image
    steps = bound_steps(match, before, op) + bound_steps(match, node, node.op)
    return emit_steps(match.build, node.op, main_operands(match, before, op), steps)


@rule
def merge_constant_steps(match: Match, node: Node) -> Replacement:
    """scale(a) scale(b) = scale(ab);  shift(a) shift(b) = shift(a + b);  scale(1) = nothing"""
    if not isinstance(node.op, Fused):
        return None
    merged = _merged(node.op.steps)
    if merged == node.op.steps:
        return None
    return match.build.emit_all(replace(node.op, steps=merged), *match.values(node))


def _merged(steps: tuple[Step, ...]) -> tuple[Step, ...]:
    merged: list[Step] = []
    for step in steps:
        kind = step.kind
        if kind == "neg":
            kind, step = "scale", Step("scale", None, (-1.0,))
        if merged and merged[-1].kind == kind and kind in ("scale", "shift"):
            (a,), (b,) = merged.pop().values, step.values
            step = Step(kind, None, (a * b if kind == "scale" else a + b,))
        if (kind, step.values) not in (("scale", (1.0,)), ("shift", (0.0,))):
            merged.append(step)
    return tuple(merged)


@rule
def reshape_first(match: Match, node: Node) -> Replacement:
    """reshape(f(x)) = f(reshape(x)) for f that works on rows

    Lets a reshape reach the move that reads memory anyway, so that steps find their op.
    """
    if not isinstance(node.op, Move) or not is_bijective(node.op.map):
        return None
    made = match.producer(node.inputs[0], Fused)
    views = canonical(node.op.map).views
    if made is None or len(views) != 1 or not isinstance(views[0], Reshape):
        return None
    source, op = made
    fits = isinstance(op, Linear | Norm | Pointwise) and not op.stats
    if isinstance(op, Pointwise) and _rides(match, source.inputs[0]):
        return None  # the reshape would come between the steps and the op that can take them
    if not (fits and keeps_columns(node.op.map) and match.single_use(source.output)):
        return None
    shape, target = match.types[source.output].shape, views[0].shape
    mains, steps = main_operands(match, source, op), bound_steps(match, source, op)
    if mains[0].shape[:-1] != shape[:-1] or any(step.kind in ROW_SCALES for step in steps):
        return None
    reshaped: list[Bound] = []
    for step in steps:
        operand = step.operand
        match.build.hint = operand.name if operand else ""
        if operand is not None and operand.shape == shape:
            operand = match.build.reshape(operand, target)
        elif operand is not None and any(dim != 1 for dim in operand.shape[:-1]):
            return None
        elif operand is not None and len(operand.shape) > 1:
            operand = match.build.reshape(operand, operand.shape[-1:])
        reshaped.append(replace(step, operand=operand))
    match.build.loc, match.build.hint = source.loc, mains[0].name
    x = match.build.reshape(mains[0], (*target[:-1], mains[0].shape[-1]))
    match.build.hint = source.output
    return emit_steps(match.build, op, (x, *mains[1:]), reshaped)


def _rides(match: Match, name: str) -> bool:
    """Whether the value is made by an op that takes steps but not reshapes."""
    made = match.producer(name, Fused)
    rows = made is None or isinstance(made[1], Linear | Norm | Pointwise)
    return not rows and match.single_use(name)


@rule
def reshape_last(match: Match, node: Node) -> Replacement:
    """f(reshape(x)) = reshape(f(x)) for elementwise f that can ride on what makes x"""
    op = node.op
    moved = match.producer(node.inputs[0], Move) if isinstance(op, Pointwise) else None
    if moved is None or not isinstance(op, Pointwise) or not match.single_use(node.inputs[0]):
        return None
    index_map = moved[1].map
    if not index_map.is_identity or not _rides(match, moved[0].inputs[0]) or op.stats:
        return None
    steps: list[Bound] = []
    for step in bound_steps(match, node, op):
        operand = step.operand
        if operand is not None and (
            not keeps_columns(index_map) or any(dim != 1 for dim in operand.shape[:-1])
        ):
            return None
        vector = operand and match.build.reshape(operand, operand.shape[-1:])
        steps.append(replace(step, operand=vector))
    result = emit_steps(match.build, op, (match.value(moved[0].inputs[0]),), steps)[0]
    return match.build.emit(moved[1], result)


@rule
def flatten_concat(match: Match, node: Node) -> Replacement:
    """concat(concat(a, b), c) = concat(a, b, c)"""
    if not isinstance(node.op, Concat):
        return None
    parts: list[Value] = []
    for name in node.inputs:
        inner = match.producer(name, Concat)
        nested = inner is not None and inner[1].axis == node.op.axis
        parts += map(match.value, inner[0].inputs if inner and nested else (name,))
    return match.build.emit(node.op, *parts) if len(parts) > len(node.inputs) else None


@rule
def slice_of_concat(match: Match, node: Node) -> Replacement:
    """slice(concat(a, b)) = a, where the slice takes just a"""
    made = match.producer(node.inputs[0], Concat) if isinstance(node.op, Move) else None
    views = node.op.map.views if isinstance(node.op, Move) else ()
    if made is None or not views or not isinstance(views[0], Slice):
        return None
    joined, cut, start = made[0], views[0], 0
    if cut.axis != made[1].axis or not isinstance(node.op, Move):
        return None
    for part in map(match.value, joined.inputs):
        size = part.type.shape[cut.axis]
        assert isinstance(size, int)
        if start <= cut.start and cut.stop <= start + size:
            inner = Slice(cut.axis, cut.start - start, cut.stop - start, cut.step)
            moved = canonical(replace(node.op.map, shape=part.shape, views=(inner, *views[1:])))
            return match.build.emit(Move(moved), part)
        start += size
    return None


@rule
def sum_of_parts(match: Match, node: Node) -> Replacement:
    """sum over axis of concat(a, b) = a + b for parts of size one"""
    op = node.op
    made = match.producer(node.inputs[0], Concat) if isinstance(op, Reduce) else None
    if made is None or not isinstance(op, Reduce) or op.kind not in ("sum", "mean", "max"):
        return None
    parts = [match.value(name) for name in made[0].inputs]
    axis, shape = made[1].axis, match.types[node.output].shape
    rank = len(parts[0].shape)
    alone = [a % rank for a in op.axes] == [axis] and all(p.shape[axis] == 1 for p in parts)
    if not alone or not is_plain(op):
        return None
    first, *rest = [match.build.reshape(part, shape) for part in parts]
    steps = [Bound("maximum" if op.kind == "max" else "add", part) for part in rest]
    if op.kind == "mean":
        steps.append(Bound("scale", None, (1.0 / len(parts),)))
    return emit_steps(match.build, Pointwise(), (first,), [*steps, *bound_steps(match, node, op)])


@rule
def self_gated(match: Match, node: Node) -> Replacement:
    """x sigmoid(x) = silu(x);  x sigmoid(1.702 x) = quick_gelu(x)"""
    op = node.op
    if not isinstance(op, Pointwise) or not op.steps or op.steps[0].kind != "mul":
        return None
    first, *rest = bound_steps(match, node, op)
    x = match.value(node.inputs[0])
    for value, gate in ((x, first.operand), (first.operand, x)):
        made = match.producer(gate.name, Pointwise) if gate is not None else None
        if value is None or made is None or made[0].inputs != (value.name,):
            continue
        kind = _GATES.get(tuple((step.kind, step.values) for step in made[1].steps))
        if kind is not None and is_plain(made[1]):
            return emit_steps(match.build, op, (value,), [Bound(kind), *rest])
    return None


_GATES: dict[tuple[tuple[str, tuple[float, ...]], ...], str] = {
    (("sigmoid", ()),): "silu",
    (("scale", (1.702,)), ("sigmoid", ())): "quick_gelu",
}

RULES = (
    compose_moves,
    drop_identity,
    canonical_move,
    share_equal,
    merge_pointwise,
    merge_constant_steps,
    reshape_first,
    reshape_last,
    flatten_concat,
    slice_of_concat,
    sum_of_parts,
    self_gated,
    *PERMUTE_RULES,
)


def clean(graph: Graph, options: PassOptions) -> Graph:
    """No move reads a move, equal nodes are one, no pointwise reads its own pointwise."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
