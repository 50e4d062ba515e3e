"""Attention written out as products and a softmax becomes one op."""

from __future__ import annotations

from dataclasses import replace

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ops import Attention, MatMul, Move, Pointwise, Softmax
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, main_operands


@rule
def attention_of_products(match: Match, node: Node) -> Replacement:
    """matmul(softmax(matmul(q, k^T) c + b), v) = attention(q, k, v, b) with scale c"""
    op = node.op
    if not isinstance(op, MatMul) or match.types[node.inputs[0]].rank != 4:
        return None
    weights = match.producer(node.inputs[0], Softmax)
    scores = match.producer(weights[0].inputs[0], MatMul) if weights is not None else None
    if weights is None or scores is None:
        return None
    inner, product = scores
    private = match.single_use(node.inputs[0]) and match.single_use(inner.output)
    scaled = _scale_and_bias(match, bound_steps(match, *scores))
    if not private or product.stats or scaled is None or match.is_constant(node.output):
        return None
    scale, bias = scaled
    q, k_transposed = main_operands(match, inner, product)
    v = match.value(node.inputs[1])
    if not q.type.rank == k_transposed.type.rank == v.type.rank == 4:
        return None
    k = match.build.permute(k_transposed, (0, 1, 3, 2))
    attention = Attention(stats=op.stats, dtype=op.dtype, scale=scale, bias=bias is not None)
    mains = (q, k, v) if bias is None else (q, k, v, bias)
    return emit_steps(match.build, attention, mains, bound_steps(match, node, op))


def _scale_and_bias(match: Match, steps: list[Bound]) -> tuple[float, Value | None] | None:
    """What the steps on the scores amount to; a shift of all scores changes no softmax."""
    scale, bias = 1.0, None
    build = match.build
    for step in steps:
        if step.kind == "scale":
            scale *= step.values[0]
            bias = bias and build.scale(bias, step.values[0])
        elif step.kind in ("add", "sub"):
            assert step.operand is not None
            term = step.operand if step.kind == "add" else build.scale(step.operand, -1.0)
            bias = term if bias is None else build.binary("add", bias, term)
        elif step.kind != "shift":
            return None
    return scale, bias


@rule
def scale_into_attention(match: Match, node: Node) -> Replacement:
    """attention(q c, k) = attention(q, k) with scale c; so for k c"""
    op = node.op
    if not isinstance(op, Attention):
        return None
    operands = list(match.values(node))
    for i in (0, 1):
        moves: list[Move] = []
        name = operands[i].name
        while (moved := match.producer(name, Move)) is not None and match.single_use(name):
            moves.insert(0, moved[1])
            name = moved[0].inputs[0]
        made = match.producer(name, Pointwise)
        steps = bound_steps(match, *made) if made is not None else []
        if made is None or not steps or steps[-1].kind != "scale" or not match.single_use(name):
            continue
        mains = main_operands(match, *made)
        x = emit_steps(match.build, made[1], mains, steps[:-1])[0]
        for move in moves:
            x = match.build.emit(move, x)
        operands[i] = x
        scale = op.scale * steps[-1].values[0]
        return match.build.emit_all(replace(op, scale=scale), *operands)
    return None


RULES = (attention_of_products, scale_into_attention)


def recognise_attention(graph: Graph, options: PassOptions) -> Graph:
    """No softmax of a product multiplies a third value of rank four; q and k come unscaled."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
