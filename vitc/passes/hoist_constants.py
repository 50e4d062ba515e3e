"""Work on constants that are repeated for each image is done once, before the repetition."""

from __future__ import annotations

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import Expand, IndexMap
from vitc.ir.types import shape_at
from vitc.ops import Attention, Linear, MatMul, Move, Norm, Pointwise
from vitc.passes.maps import canonical, of_one_image
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule


def _for_one_image(match: Match, name: str) -> Value | None:
    """The value before it was repeated for each image: a constant [1, ...]."""
    moved = match.producer(name, Move)
    if moved is None or not match.is_constant(moved[0].inputs[0]):
        return None
    if not match.types[name].batched:
        return None
    single = canonical(of_one_image(moved[1].map))
    constant = match.value(moved[0].inputs[0])
    if not single.views:
        return constant
    hint, match.build.hint = match.build.hint, constant.name
    result = match.build.emit(Move(single), constant)
    match.build.hint = hint
    return result


@rule
def repeat_last(match: Match, node: Node) -> Replacement:
    """f(repeat(c)) = repeat(f(c)) for constants c"""
    op = node.op
    if not isinstance(op, Linear | Norm | Pointwise | Move) or not node.inputs:
        return None
    operands: list[Value] = []
    for name in node.inputs:
        value = match.value(name) if match.is_constant(name) else _for_one_image(match, name)
        if value is None:
            return None
        operands.append(value)
    target = match.types[node.output].shape
    if not match.types[node.output].batched or all(map(match.is_constant, node.inputs)):
        return None
    if isinstance(op, Move):
        op = Move(canonical(of_one_image(op.map)))
    single = match.build.emit(op, *operands)
    if single.shape != shape_at(target, 1):
        return None
    return match.build.emit(Move(IndexMap(single.shape, (Expand(target),))), single)


@rule
def broadcast_constant(match: Match, node: Node) -> Replacement:
    """f(x, repeat(c)) = f(x, c) for f that broadcasts"""
    op = node.op
    if not isinstance(op, Attention | MatMul | Pointwise):
        return None
    operands = list(match.values(node))
    for i, operand in enumerate(operands):
        single = _for_one_image(match, operand.name)
        if single is None or len(single.shape) != len(operand.shape):
            continue
        tried = [*operands[:i], single, *operands[i + 1 :]]
        if op.infer(*(value.type for value in tried))[0] == match.types[node.output]:
            return match.build.emit_all(op, *tried)
    return None


RULES = (repeat_last, broadcast_constant)


def hoist_constants(graph: Graph, options: PassOptions) -> Graph:
    """No constant is repeated for each image when its reader broadcasts."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
