"""Permutations sink below elementwise and row-wise work, where pairs of them cancel."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeGuard

from vitc.ir.builder import Value
from vitc.ir.graph import Node
from vitc.ir.index_map import IndexMap, Permute, Reshape
from vitc.ops import Fused, GroupNorm, Move, Norm, Pointwise, Reduce
from vitc.passes.maps import is_bijective, keeps_columns
from vitc.passes.rewrite import Match, Replacement, rule
from vitc.passes.steps import Bound, bound_steps, emit_steps


def _is_permuting(index_map: IndexMap) -> bool:
    permutes = any(isinstance(view, Permute) for view in index_map.views)
    return permutes and is_bijective(index_map)


@rule
def permute_last(match: Match, node: Node) -> Replacement:
    """f(permute(x), o) = permute(f(x, permute^-1(o))) for elementwise and row-wise f"""
    op = node.op
    if not _sinks(op):
        return None
    moved = match.producer(node.inputs[0], Move)
    if moved is None or op.stats or not _is_permuting(moved[1].map):
        return None
    index_map = moved[1].map
    if not isinstance(op, Pointwise) and not keeps_columns(index_map):
        return None
    if match.types[node.output].shape != index_map.result:  # it widens
        return None
    steps: list[Bound] = []
    for step in bound_steps(match, node, op):
        operand = step.operand and _unmoved(match, step.operand, index_map)
        if step.operand is not None and operand is None:
            return None
        steps.append(replace(step, operand=operand))
    results = emit_steps(match.build, op, (match.value(moved[0].inputs[0]),), steps)
    return match.build.emit(Move(index_map), results[0])


def _sinks(op: object) -> TypeGuard[Fused]:
    return isinstance(op, Pointwise | Norm | GroupNorm)


def _unmoved(match: Match, operand: Value, index_map: IndexMap) -> Value | None:
    """What, moved by `index_map` and broadcast, is the operand; None where that costs a copy."""
    if all(dim == 1 for dim in operand.shape):
        return match.build.reshape(operand, ())
    if keeps_columns(index_map) and all(dim == 1 for dim in operand.shape[:-1]):
        return match.build.reshape(operand, operand.shape[-1:])
    same = match.producer(operand.name, Move)
    if same is not None and same[1].map == index_map:
        return match.value(same[0].inputs[0])
    if not match.is_constant(operand.name):
        return None
    rank = len(index_map.result)
    if len(index_map.views) == 1 and isinstance(index_map.views[0], Permute):
        padded = match.build.reshape(operand, (1,) * (rank - len(operand.shape)) + operand.shape)
        inverse = sorted(range(rank), key=index_map.views[0].axes.__getitem__)
        return match.build.permute(padded, inverse)
    return None


@rule
def permute_into_reduce(match: Match, node: Node) -> Replacement:
    """reduce(permute(x), axes) = reduce(x, permuted axes)"""
    op = node.op
    moved = match.producer(node.inputs[0], Move) if isinstance(op, Reduce) else None
    if moved is None or not isinstance(op, Reduce) or op.keepdims or len(moved[1].map.views) != 1:
        return None
    view = moved[1].map.views[0]
    if not isinstance(view, Permute):
        return None
    rank = len(view.axes)
    reduced = {axis % rank for axis in op.axes}
    axes = tuple(sorted(view.axes[axis] for axis in reduced))
    kept = [view.axes[axis] for axis in range(rank) if axis not in reduced]
    if kept != sorted(kept):
        return None
    x = match.value(moved[0].inputs[0])
    rest = [match.value(name) for name in node.inputs[1:]]
    return match.build.emit_all(replace(op, axes=axes), x, *rest)


@rule
def reshape_into_reduce(match: Match, node: Node) -> Replacement:
    """reduce(x [.., a, b, C] reshaped to [.., ab, C], axis ab) = reduce(x, axes a and b)"""
    op = node.op
    moved = match.producer(node.inputs[0], Move) if isinstance(op, Reduce) else None
    if moved is None or not isinstance(op, Reduce) or op.keepdims or len(op.axes) != 1:
        return None
    views, shape = moved[1].map.views, moved[1].map.shape
    if len(views) != 1 or not isinstance(views[0], Reshape):
        return None
    merged = views[0].shape
    axis = op.axes[0] % len(merged)
    extra = len(shape) - len(merged)
    if (
        extra <= 0
        or shape[:axis] != merged[:axis]
        or shape[axis + extra + 1 :] != merged[axis + 1 :]
    ):
        return None
    x = match.value(moved[0].inputs[0])
    rest = [match.value(name) for name in node.inputs[1:]]
    return match.build.emit_all(replace(op, axes=tuple(range(axis, axis + extra + 1))), x, *rest)


PERMUTE_RULES = (permute_last, permute_into_reduce, reshape_into_reduce)
