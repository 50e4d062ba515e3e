"""Scales and shifts per channel behind a product go into its weight and bias.

BatchNorm, LayerScale and scalar factors all look like this once they ride on a linear or conv2d.
"""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

from vitc.ir.graph import Graph, Node
from vitc.ir.types import per_image
from vitc.ops import Conv2d, Fused, Linear
from vitc.passes.affine import affine_prefix, composed, is_affine
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
def add_constants_first(match: Match, node: Node) -> Replacement:
    """f(x) + y + c = f(x) + c + y for constants c"""
    op = node.op
    if not isinstance(op, Linear | Conv2d) or match.is_constant(node.output):
        return None
    steps = bound_steps(match, node, op)
    for i, (first, second) in enumerate(pairwise(steps)):
        a, b = first.operand, second.operand
        sums = {first.kind, second.kind} <= {"add", "sub"}
        if not sums or a is None or b is None or match.is_constant(a.name):
            continue
        if match.is_constant(b.name):
            steps[i : i + 2] = [second, first]
            return emit_steps(match.build, op, main_operands(match, node, op), steps)
    return None


@rule
def scale_sum(match: Match, node: Node) -> Replacement:
    """(x + f(y)) c = x c + f(y) c, where the second product can take the factor"""
    op = node.op
    if not isinstance(op, Linear):
        return None
    steps = bound_steps(match, node, op)
    columns = per_image(match.types[node.output].shape[-1:])
    for i, (sum_, scale) in enumerate(pairwise(steps)):
        made = match.producer(sum_.operand.name, Linear) if sum_.operand is not None else None
        if sum_.kind != "add" or made is None or scale.kind not in ("scale", "mul", "div"):
            continue
        private = match.single_use(made[0].output) and made[1].stats == 0
        if not private or not is_affine(match, scale, columns):
            continue
        match.build.hint, match.build.loc = made[0].output, made[0].loc
        inner = [*bound_steps(match, *made), scale]
        scaled = emit_steps(match.build, made[1], main_operands(match, *made), inner)[0]
        match.build.hint, match.build.loc = node.output, node.loc
        steps[i : i + 2] = [scale, replace(sum_, operand=scaled)]
        return emit_steps(match.build, op, main_operands(match, node, op), steps)
    return None


RULES = (affine_into_weight, merge_constant_adds, add_constants_first, scale_sum)


def fold_affine(graph: Graph, options: PassOptions) -> Graph:
    """The steps of a linear or conv2d begin with at most one constant, and that is added."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
