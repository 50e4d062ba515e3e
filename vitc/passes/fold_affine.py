"""Scales and shifts per channel behind a product go into its weight and bias.

BatchNorm, LayerScale and scalar factors all look like this once they ride on a linear or conv2d.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from vitc.ir.graph import Graph, Node
from vitc.ir.types import per_image
from vitc.ops import Conv2d, Fused, Linear
from vitc.passes.affine import affine_prefix, composed
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, main_operands


@rule
def affine_into_weight(match: Match, node: Node) -> Replacement:
    """(x w^T) s + t = x (s w)^T + t"""
    op = node.op
    if not isinstance(op, Linear | Conv2d) or not match.is_constant(node.inputs[1]):
        return None
    columns = per_image(match.types[node.output].shape[-1:])
    steps = bound_steps(match, node, op)
    count = affine_prefix(match, steps, columns)
    head, rest = steps[:count], steps[count:]
    if not head or (len(head) == 1 and head[0].kind == "add" and _is_vector(head[0], columns)):
        return None
    x, w = main_operands(match, node, op)
    match.build.hint = node.inputs[1]
    affine = composed(match, head, columns)
    w = affine.scale_weight(match.build, w, 0)
    shift = [Bound("add", affine.shift)] if affine.shift is not None else []
    match.build.hint = node.output
    return emit_steps(match.build, op, (x, w), [*shift, *rest])


def _is_vector(step: Bound, columns: int) -> bool:
    return step.operand is not None and step.operand.shape == (columns,)


@rule
def merge_constant_adds(match: Match, node: Node) -> Replacement:
    """f(x) + a + b = f(x) + (a + b) for constants a and b"""
    if not isinstance(node.op, Fused) or match.is_constant(node.output):
        return None
    steps = bound_steps(match, node, node.op)
    for i, (first, second) in enumerate(pairwise(steps)):
        a, b = first.operand, second.operand
        kinds = {first.kind, second.kind} <= {"add", "sub"}
        if not kinds or a is None or b is None or first.kind != "add":
            continue
        if match.is_constant(a.name) and match.is_constant(b.name):
            match.build.hint = a.name
            both = Bound("add", match.build.binary(second.kind, a, b))
            match.build.hint = node.output
            steps[i : i + 2] = [both]
            return emit_steps(match.build, node.op, main_operands(match, node, node.op), steps)
    return None


@rule
def scale_sum(match: Match, node: Node) -> Replacement:
    """(x + f(y)) c = x c + f(y) c, where the second product can take the factor"""
    op = node.op
    if not isinstance(op, Linear):
        return None
    steps = bound_steps(match, node, op)
    scales = [i for i, step in enumerate(steps) if step.kind == "scale"]
    if not scales or scales[0] == 0:
        return None
    at = scales[0]
    before = steps[at - 1]
    made = None if before.operand is None else match.producer(before.operand.name, Linear)
    if before.kind != "add" or before.operand is None or made is None:
        return None
    if not match.single_use(before.operand.name) or made[1].stats:
        return None
    inner = bound_steps(match, *made)
    scaled = emit_steps(match.build, made[1], main_operands(match, *made), [*inner, steps[at]])[0]
    steps[at - 1 : at + 1] = [steps[at], replace(before, operand=scaled)]
    return emit_steps(match.build, op, main_operands(match, node, op), steps)


RULES = (affine_into_weight, merge_constant_adds, scale_sum)


def fold_affine(graph: Graph, options: PassOptions) -> Graph:
    """The steps of a linear or conv2d begin with at most one constant, and that is added."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
