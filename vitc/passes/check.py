"""Proof by trial: both sides of a rewrite are interpreted on random arrays and compared."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from vitc.errors import GraphError
from vitc.ir.graph import Node
from vitc.ir.op import Array
from vitc.ir.types import TensorType, shape_at

if TYPE_CHECKING:
    from vitc.passes.rewrite import Match

BATCH = 2
TOLERANCE = 1e-9


def check_application(
    rule: str, match: Match, node: Node, added: Sequence[Node], results: tuple[str, ...]
) -> None:
    """Compares the node's results with `results`, which the `added` nodes make.

    The two sides are cut at activations that both read: those (and graph inputs and weights) are
    drawn at random. Raises GraphError naming the rule when the sides differ.
    """
    made = {name for new in added for name in new.outputs}
    read = {name for new in added for name in new.inputs}
    if not added and all(_is_near(name, match, node) for name in results):
        read = set(node.inputs)
    cut = {name for name in read - made if not match.is_constant(name)}
    cut = _common_cut(cut, match, node)
    new_side = _cone(set(results), cut, match, added)
    old_side = _cone(set(node.outputs), cut, match, (node,))
    leaves = _leaves(new_side, results) | _leaves(old_side, node.outputs)
    for positive in (False, True):  # roots and logarithms are tried where they are defined
        drawn = {name: _draw(match.types[name], name, positive) for name in leaves}
        with np.errstate(all="ignore"):
            old = _run(old_side, drawn, node.outputs)
            new = _run(new_side, drawn, results)
        if all(np.isfinite(array).all() for array in (*old, *new)):
            break
    else:
        raise GraphError(f"rule '{rule}': no random arrays give finite results at %{node.output}")
    for name, a, b in zip(node.outputs, old, new, strict=True):
        error = float(np.abs(a - b).max() / max(1e-30, np.abs(a).max())) if a.size else 0.0
        if a.shape != b.shape or error > TOLERANCE:
            raise GraphError(f"rule '{rule}' is not exact at %{name}: error {error:.3g}")


def _common_cut(cut: set[str], match: Match, node: Node) -> set[str]:
    """Moves the cut up where the new side reads what the old side does not come across."""
    while True:
        side = _cone(set(node.outputs), cut, match, (node,))
        leaves = {n for n in _leaves(side, node.outputs) if not match.is_constant(n)}
        hidden = {name for name in cut - leaves if name in match.producers}
        if leaves <= cut or not hidden:
            return cut
        above = {n for name in hidden for n in match.producers[name].inputs}
        cut = (cut - hidden) | {n for n in above if not match.is_constant(n)}


def _cone(wanted: set[str], cut: set[str], match: Match, last: Sequence[Node]) -> tuple[Node, ...]:
    """Nodes that `wanted` needs, in order, stopping at the values in `cut`."""
    own = {name: node for node in last for name in node.outputs}
    done: dict[str, Node] = {}
    order: list[Node] = []

    def visit(name: str) -> None:
        node = own.get(name) or match.producers.get(name)
        if node is None or node.output in done or (name in cut and name not in own):
            return
        done[node.output] = node
        for operand in node.inputs:
            visit(operand)
        order.append(node)

    for name in sorted(wanted):
        visit(name)
    return tuple(order)


def _leaves(nodes: Sequence[Node], results: Sequence[str]) -> set[str]:
    made = {name for node in nodes for name in node.outputs}
    return ({name for node in nodes for name in node.inputs} | set(results)) - made


def _is_near(name: str, match: Match, node: Node) -> bool:
    """Whether the value is an operand of the node, or made of just its operands."""
    twin = match.producers.get(name)
    return name in node.inputs or (twin is not None and twin.inputs == node.inputs)


def _draw(type_: TensorType, name: str, positive: bool) -> Array:
    rng = np.random.default_rng(sum(name.encode()) + 1000 * len(name))
    shape = shape_at(type_.shape, BATCH)
    if not type_.dtype.is_float:
        return np.zeros(shape)  # an index that is valid everywhere
    return rng.uniform(0.5, 1.5, shape) if positive else rng.standard_normal(shape)


def _run(nodes: Sequence[Node], leaves: Mapping[str, Array], results: Sequence[str]) -> list[Array]:
    values = dict(leaves)
    for node in nodes:
        operands = [values[name] for name in node.inputs]
        made = node.op.reference(*operands, batch=BATCH)
        values.update(zip(node.outputs, made, strict=True))
    return [values[name] for name in results]
