"""RMS norms between products disappear: the writer sums squares, the readers divide.

norm(x) w^T = (x w^T) / rms(x), row by row. The sum of squares of a row is at hand where the row is
written, so it rides along as partial sums, and the division is the first step of each reader.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ir.types import per_image
from vitc.ops import Fused, Linear, Move, Norm, Pointwise, Step
from vitc.passes.maps import keeps_columns, with_columns
from vitc.passes.options import PassOptions

WRITERS = (Linear, Pointwise, Norm)


@dataclass(frozen=True)
class _Removal:
    """A norm that goes: what it reads is `moves` (first to last) of what `writer` makes."""

    norm: Node
    writer: Node
    moves: tuple[Move, ...]

    @property
    def eps(self) -> float:
        assert isinstance(self.norm.op, Norm)
        return self.norm.op.eps


def _removal(graph: Graph, norm: Node) -> _Removal | None:
    """None unless all readers are linears and the rows' writer can sum squares."""
    op = norm.op
    if not isinstance(op, Norm) or op != Norm(kind="rms", eps=op.eps):
        return None
    readers = graph.users.get(norm.output, ())
    if norm.output in graph.outputs or not readers or norm.output in graph.constants:
        return None
    for reader in readers:
        if not isinstance(reader.op, Linear) or reader.inputs.index(norm.output) != 0:
            return None
        if reader.inputs.count(norm.output) != 1:
            return None
    moves: list[Move] = []
    node = graph.producers.get(norm.inputs[0])
    while node is not None and isinstance(node.op, Move):
        if not keeps_columns(node.op.map):
            return None
        moves.insert(0, node.op)
        node = graph.producers.get(node.inputs[0])
    if node is None or not isinstance(node.op, WRITERS) or node.op.dtype is not None:
        return None
    return None if node.op.stats else _Removal(norm, node, tuple(moves))


def row_statistics(graph: Graph, options: PassOptions) -> Graph:
    """No plain RMS norm stands between a linear, pointwise or norm and linears."""
    found = [removal for node in graph.nodes if (removal := _removal(graph, node)) is not None]
    if not found:
        return graph
    removed = {removal.norm.output: removal for removal in found}
    writers = {removal.writer.output for removal in found}
    build = Builder(graph.types, numbered=True)
    statistics: dict[str, Value] = {}
    moved: dict[str, Value] = {}
    for node in graph.nodes:
        if node.output in writers:
            names = (node.output, build.fresh(f"{node.output}.stats"))
            assert isinstance(node.op, Fused)
            op = replace(node.op, stats=options.stats_width)
            build.nodes.append(replace(node, op=op, outputs=names))
            types = op.infer(*(graph.types[name] for name in node.inputs))
            statistics[node.output] = Value(names[1], types[1])
        elif node.output in removed:
            removal = removed[node.output]
            moved[node.output] = _moved(build, removal, statistics[removal.writer.output])
            continue
        else:
            build.nodes.append(node)
        last = build.nodes[-1]
        if last.inputs and (removal := removed.get(last.inputs[0])) is not None:
            size = per_image(graph.types[last.inputs[0]].shape[-1:])
            build.nodes[-1] = _divided(last, removal, moved[last.inputs[0]], size)
    return graph.with_nodes(build.nodes).without_dead_nodes()


def _moved(build: Builder, removal: _Removal, statistics: Value) -> Value:
    """The statistics of the rows that the norm read."""
    build.loc, build.hint = removal.norm.loc, statistics.name
    for move in removal.moves:
        parts = statistics.shape[-1]
        statistics = build.emit(Move(with_columns(move.map, parts)), statistics)
    return statistics


def _divided(reader: Node, removal: _Removal, statistics: Value, size: int) -> Node:
    """The linear that reads what the norm read, and divides by its root mean square first."""
    op = reader.op
    assert isinstance(op, Linear)
    _, w, *rest = reader.inputs
    operands = [removal.norm.inputs[0], w, statistics.name, *rest]
    rstd = Step("row_rstd", 2, (float(size), removal.eps))
    steps = (rstd, *(step.shifted(1) for step in op.steps))
    return replace(reader, op=replace(op, steps=steps), inputs=tuple(operands))
