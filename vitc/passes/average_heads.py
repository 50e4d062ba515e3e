"""The two heads of a distilled model, averaged, are one linear."""

from __future__ import annotations

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import IndexMap, Reshape, Slice
from vitc.ir.types import per_image
from vitc.ops import Linear, Move
from vitc.passes.fold_affine import merge_constant_adds
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import bound_steps, emit_steps


@rule
def join_heads(match: Match, node: Node) -> Replacement:
    """u a^T + v b^T = [u v] [a b]^T for neighbouring tokens;  x a^T + x b^T = x (a + b)^T"""
    op = node.op
    if not isinstance(op, Linear) or match.is_constant(node.output):
        return None
    steps = bound_steps(match, node, op)
    for at, step in enumerate(steps):
        if step.kind != "add":
            return None
        made = match.producer(step.operand.name, Linear) if step.operand is not None else None
        if made is None or not match.single_use(made[0].output) or made[1].stats:
            continue
        others = bound_steps(match, *made)
        if any(other.kind != "add" for other in others):
            continue
        joined = _joined(match, node, made[0])
        if joined is not None:
            rest = [*steps[:at], *others, *steps[at + 1 :]]
            return emit_steps(match.build, op, joined, rest)
    return None


def _joined(match: Match, first: Node, second: Node) -> tuple[Value, Value] | None:
    """(both inputs, both weights) as one, when the inputs are equal or neighbouring tokens."""
    if first.inputs[0] == second.inputs[0]:
        return _summed(match, first, second)
    rows = [_row(match, node.inputs[0]) for node in (first, second)]
    weights = [match.value(node.inputs[1]) for node in (first, second)]
    if rows[0] is None or rows[1] is None or rows[0][0] != rows[1][0]:
        return None
    (name, i), (_, j) = rows[0], rows[1]
    if abs(i - j) != 1 or not all(match.is_constant(weight.name) for weight in weights):
        return None
    build, shape = match.build, match.types[name].shape
    build.hint = weights[0].name
    w = build.concat(weights if i < j else weights[::-1], 1)
    start, width = min(i, j), per_image(shape[2:])
    views = (Slice(1, start, start + 2), Reshape((shape[0], 2 * width)))
    build.hint = first.inputs[0]
    x = build.emit(Move(IndexMap(shape, views)), match.value(name))
    build.hint = first.output
    return x, w


def _summed(match: Match, first: Node, second: Node) -> tuple[Value, Value] | None:
    """(x, a + b) for products of the same x."""
    a, b = (match.value(node.inputs[1]) for node in (first, second))
    if not match.is_constant(a.name) or not match.is_constant(b.name):
        return None
    match.build.hint = a.name
    w = match.build.binary("add", a, b)
    match.build.hint = first.output
    return match.value(first.inputs[0]), w


def _row(match: Match, name: str) -> tuple[str, int] | None:
    """(x, i) when the value is x[:, i] of x [B, T, C]."""
    moved = match.producer(name, Move)
    if moved is None or len(moved[1].map.shape) != 3 or len(moved[1].map.views) != 2:
        return None
    cut, shape = moved[1].map.views[0], moved[1].map.result
    if not isinstance(cut, Slice) or cut.axis != 1 or cut.stop != cut.start + 1:
        return None
    source = moved[1].map.shape
    return (moved[0].inputs[0], cut.start) if shape == (source[0], source[2]) else None


RULES = (join_heads, merge_constant_adds)


def average_heads(graph: Graph, options: PassOptions) -> Graph:
    """No two linears over one input, or over neighbouring tokens, are added."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
