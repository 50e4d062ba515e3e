"""Elementwise work rides on the op that makes its operand."""

from __future__ import annotations

from dataclasses import replace

from vitc.ir.graph import Graph, Node
from vitc.ops import (
    Attention,
    Conv2d,
    Fused,
    GroupNorm,
    Linear,
    MatMul,
    Norm,
    Pointwise,
    Pool2d,
    Reduce,
)
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, is_plain, main_operands

CARRIERS = (Linear, Conv2d, MatMul, Norm, GroupNorm, Pool2d, Reduce)
# What attention kernels apply to what they store.
ACTIVATIONS = frozenset(("gelu", "gelu_tanh", "quick_gelu", "silu", "relu", "hardswish", "sigmoid"))
# x (kind) o, told from the other side.
SWAPPED = {
    "add": "add",
    "mul": "mul",
    "sub": "rsub",
    "rsub": "sub",
    "div": "rdiv",
    "rdiv": "div",
    "maximum": "maximum",
    "minimum": "minimum",
}


def _carrier(match: Match, name: str) -> tuple[Node, Fused] | None:
    """The node that makes the value when steps can be appended to it."""
    made = match.producer(name, Fused)
    fits = made is not None and isinstance(made[1], CARRIERS) and is_plain(made[1])
    return made if fits and match.single_use(name) and not match.is_constant(name) else None


@rule
def fuse_steps(match: Match, node: Node) -> Replacement:
    """pointwise(f(x), s) = f(x, s)"""
    if not isinstance(node.op, Pointwise):
        return None
    made = _carrier(match, node.inputs[0])
    if made is None or match.types[node.output].shape != match.types[node.inputs[0]].shape:
        return None
    source, op = made
    carrier = replace(op, stats=node.op.stats, dtype=node.op.dtype)
    steps = bound_steps(match, source, op) + bound_steps(match, node, node.op)
    match.build.loc = source.loc or node.loc
    return emit_steps(match.build, carrier, main_operands(match, source, op), steps)


@rule
def fuse_activation(match: Match, node: Node) -> Replacement:
    """pointwise(attention(q, k, v), activation) = attention(q, k, v, activation)"""
    op = node.op
    made = match.producer(node.inputs[0], Attention) if isinstance(op, Pointwise) else None
    if made is None or not isinstance(op, Pointwise) or not is_plain(made[1]) or not is_plain(op):
        return None
    lone = bool(op.steps) and all(step.kind in ACTIVATIONS for step in op.steps)
    if not lone or not match.single_use(made[0].output):
        return None
    fused = replace(made[1], steps=(*made[1].steps, *op.steps))
    return match.build.emit_all(fused, *match.values(made[0]))


@rule
def swap_operands(match: Match, node: Node) -> Replacement:
    """pointwise(x, f(y)) add = pointwise(f(y), x) add

    Turns a sum round when only its second operand can carry it.
    """
    if not isinstance(node.op, Pointwise) or not node.op.steps:
        return None
    first, *rest = bound_steps(match, node, node.op)
    if first.operand is None or first.kind not in SWAPPED:
        return None
    x, other = match.value(node.inputs[0]), first.operand
    if other.type != match.types[node.output] or _carrier(match, other.name) is None:
        return None
    if _carrier(match, x.name) is not None and x.shape == other.shape:
        return None
    if any(step.operand == other for step in rest):
        return None
    swapped = Bound(SWAPPED[first.kind], x)
    return emit_steps(match.build, node.op, (other,), [swapped, *rest])


RULES = (fuse_steps, fuse_activation, swap_operands)


def fuse_epilogue(graph: Graph, options: PassOptions) -> Graph:
    """No pointwise is left that could ride on the one op that makes its operand."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
