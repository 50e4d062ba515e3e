"""Class tokens, positions and the patch bias are one table that the patch product adds."""

from __future__ import annotations

import numpy as np

from vitc.ir.builder import Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import Expand
from vitc.ir.types import per_image
from vitc.ops import Concat, Linear, Move
from vitc.passes.fold_affine import merge_constant_adds
from vitc.passes.maps import of_one_image
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps, is_plain, main_operands


@rule
def tokens_into_table(match: Match, node: Node) -> Replacement:
    """concat(c, x w^T + p) = pad(x) w^T + concat(c, p) for constants c, p"""
    op = node.op
    if not isinstance(op, Concat) or op.axis != 1 or match.types[node.output].rank != 3:
        return None
    live = [i for i, name in enumerate(node.inputs) if not _is_token(match, name)]
    made = match.producer(node.inputs[live[0]], Linear) if len(live) == 1 else None
    if made is None or not is_plain(made[1]) or not match.single_use(made[0].output):
        return None
    shape = match.types[made[0].output].shape
    tokens, columns = per_image(shape[1:2]), per_image(shape[2:])
    steps = bound_steps(match, *made)
    if not all(_is_table(match, step) for step in steps):
        return None
    parts = [
        _table(match, steps, tokens, columns) if i == live[0] else _one_image(match, name)
        for i, name in enumerate(node.inputs)
    ]
    sizes = [per_image(part.shape[1:2]) for part in parts]
    table = match.build.concat(parts, 1)
    match.build.loc = made[0].loc
    x, w = main_operands(match, *made)
    padded = match.build.pad(x, 1, sum(sizes[: live[0]]), sum(sizes[live[0] + 1 :]))
    return emit_steps(match.build, made[1], (padded, w), [Bound("add", table)])


def _is_token(match: Match, name: str) -> bool:
    """Whether the value is a constant, perhaps repeated for each image."""
    return match.is_constant(name) or _expanded(match, name) is not None


def _expanded(match: Match, name: str) -> tuple[Node, Move] | None:
    """The move that repeats a constant for each image of the batch."""
    moved = match.producer(name, Move)
    if moved is None or not match.is_constant(moved[0].inputs[0]):
        return None
    return moved if any(isinstance(view, Expand) for view in moved[1].map.views) else None


def _one_image(match: Match, name: str) -> Value:
    moved = _expanded(match, name)
    if moved is None:
        return match.value(name)
    match.build.hint = moved[0].inputs[0]
    return match.build.emit(Move(of_one_image(moved[1].map)), match.value(moved[0].inputs[0]))


def _is_table(match: Match, step: Bound) -> bool:
    """Whether the step adds a constant to each token."""
    constant = step.operand is not None and match.is_constant(step.operand.name)
    return step.kind in ("add", "sub") and constant


def _table(match: Match, steps: list[Bound], tokens: int, columns: int) -> Value:
    """[1, tokens, columns]: what the steps add to the patches."""
    total: Value | None = None
    for step in steps:
        assert step.operand is not None
        match.build.hint = step.operand.name
        term = step.operand if step.kind == "add" else match.build.scale(step.operand, -1.0)
        total = term if total is None else match.build.binary("add", total, term)
    if total is None:
        total = match.build.literal(np.zeros((1, 1, 1), np.float32))
    return match.build.expand(total, (1, tokens, columns))


RULES = (tokens_into_table, merge_constant_adds)


def embed_table(graph: Graph, options: PassOptions) -> Graph:
    """No concat joins constant tokens and a product of patches."""
    return rewrite(graph, options.enabled(RULES), check=options.check)
