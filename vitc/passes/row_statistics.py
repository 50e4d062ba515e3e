"""Norms between products disappear: the writer sums up its rows, the readers divide.

rms_norm(x) w^T = (x w^T) / rms(x), row by row. The sum of squares of a row is at hand where the row
is written, so it rides along as partial sums, and the division is the first step of each reader.

layer_norm(x) w^T = (x c^T) / std(x), with c = w less its mean over the inputs: a row's mean goes
through the product as mean(x) times the sum of each output's weights, which for c is zero. The
variance is mean(x^2) - mean(x)^2, so the writer adds the sum to the sum of squares. Streams that
`centre_residual` keeps centred need no sums; this is for the others, such as the stages of a Swin,
whose patch merging sees how the means of neighbouring pixels differ.

That is exact but for rounding, of which rows far from zero cost more: x is multiplied with its
mean, an error that grows with |mean| / deviation, and the variance is a difference, whose error
grows with its square. A model with such rows has `disable={"row_statistics"}`.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import Reshape
from vitc.ir.types import per_image
from vitc.ops import Fused, Linear, Move, Norm, Pointwise, Reduce, Step
from vitc.passes.maps import canonical, in_whole_rows, keeps_columns, with_columns
from vitc.passes.options import PassOptions

WRITERS = (Linear, Pointwise, Norm)


@dataclass(frozen=True)
class _Removal:
    """A norm that goes: what it reads is `moves` (first to last) of what `writer` makes."""

    norm: Node
    writer: Node
    moves: tuple[Move, ...]

    @property
    def sums(self) -> bool:
        """Whether the readers need the variance."""
        return isinstance(self.norm.op, Norm) and self.norm.op.kind == "layer"


def _removal(graph: Graph, norm: Node) -> _Removal | None:
    """None unless all readers are linears and the rows' writer can sum them up."""
    op = norm.op
    if not isinstance(op, Norm) or op != Norm(kind=op.kind, eps=op.eps):
        return None
    if norm.output in graph.constants or not _read_by_linears(graph, norm.output):
        return None
    moves: list[Move] = []
    node = graph.producers.get(norm.inputs[0])
    while node is not None and isinstance(node.op, Move):
        if in_whole_rows(node.op.map) is None:
            return None
        moves.insert(0, node.op)
        node = graph.producers.get(node.inputs[0])
    if node is None or not isinstance(node.op, WRITERS):
        return None
    taken = node.op.stats or node.op.dtype is not None or node.output in graph.constants
    return None if taken else _Removal(norm, node, tuple(moves))


def _read_by_linears(graph: Graph, name: str) -> bool:
    """Whether all readers are linears of constant weights, perhaps behind moves of whole rows."""
    readers = graph.users.get(name, ())
    if name in graph.outputs or not readers:
        return False
    for reader in readers:
        if isinstance(reader.op, Move):
            if not keeps_columns(reader.op.map) or not _read_by_linears(graph, reader.output):
                return False
        elif not isinstance(reader.op, Linear) or [
            i
            for i, operand in enumerate(reader.inputs)
            if operand == name or (i == 1 and operand not in graph.constants)
        ] != [0]:
            return False
    return True


@dataclass(frozen=True)
class _Row:
    """What a reader gets for a normalised value: the value itself, its statistics (with sums for a
    layer norm), and eps.
    """

    value: Value
    statistics: Value
    sums: bool
    eps: float


class _Rebuilder:
    """Writes the graph anew without the norms."""

    def __init__(self, graph: Graph, removals: list[_Removal], width: int) -> None:
        self.graph = graph
        self.width = width
        self.removed = {removal.norm.output: removal for removal in removals}
        self.writers = {removal.writer.output: removal.sums for removal in removals}
        self.build = Builder(graph.types, numbered=True)
        self.statistics: dict[str, Value] = {}
        self.rows: dict[str, _Row] = {}
        self.centred: dict[str, Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            row = self.rows.get(node.inputs[0]) if node.inputs else None
            self.build.loc = node.loc
            if node.output in self.removed:
                self._remove(self.removed[node.output])
            elif row is not None and isinstance(node.op, Move):
                self.rows[node.output] = self._moved(node, node.op, row)
            else:
                self._keep(node if row is None else self._divided(node, row))
        return self.graph.with_nodes(self.build.nodes).without_dead_nodes()

    def _keep(self, node: Node) -> None:
        if node.output not in self.writers:
            self.build.nodes.append(node)
            return
        assert isinstance(node.op, Fused)
        names = (node.output, self.build.fresh(f"{node.output}.stats"))
        op = replace(node.op, stats=self.width, sums=self.writers[node.output])
        self.build.nodes.append(replace(node, op=op, outputs=names))
        rows = self.graph.types[node.output].shape
        parts = op.statistics_of(per_image(rows[-1:]))
        type_ = self.graph.types[node.output].with_shape((*rows[:-1], parts))
        self.statistics[node.output] = Value(names[1], type_)

    def _remove(self, removal: _Removal) -> None:
        statistics = self.statistics[removal.writer.output]
        for move in removal.moves:
            statistics = self._move_statistics(move, statistics)
        name = removal.norm.inputs[0]
        assert isinstance(removal.norm.op, Norm)
        value = Value(name, self.graph.types[name])
        self.rows[removal.norm.output] = _Row(value, statistics, removal.sums, removal.norm.op.eps)

    def _moved(self, node: Node, op: Move, row: _Row) -> _Row:
        self.build.hint = row.value.name
        value = self.build.emit(op, row.value)
        return replace(row, value=value, statistics=self._move_statistics(op, row.statistics))

    def _move_statistics(self, move: Move, statistics: Value) -> Value:
        """The rows' statistics, moved as the rows are; those of merged rows stand side by side."""
        self.build.hint = statistics.name
        parts = statistics.shape[-1]
        if keeps_columns(move.map):
            return self.build.emit(Move(with_columns(move.map, parts)), statistics)
        pieces = in_whole_rows(move.map)
        assert pieces is not None
        moved = with_columns(pieces, parts)
        merged = Reshape((*moved.result[:-2], per_image(moved.result[-2:])))
        return self.build.emit(Move(canonical(moved.then(merged))), statistics)

    def _divided(self, node: Node, row: _Row) -> Node:
        """The linear that reads the rows as they are, and divides by their deviation."""
        assert isinstance(node.op, Linear)
        _, w, *rest = node.inputs
        size = float(per_image(row.value.shape[-1:]))
        if row.sums:
            w = self._centred(w)
        steps = (
            Step("layer_rstd" if row.sums else "row_rstd", 2, (size, row.eps)),
            *(step.shifted(1) for step in node.op.steps),
        )
        inputs = (row.value.name, w, row.statistics.name, *rest)
        return replace(node, op=replace(node.op, steps=steps), inputs=inputs)

    def _centred(self, weight: str) -> str:
        """weight - mean(weight) over the inputs."""
        if weight not in self.centred:
            value = Value(weight, self.graph.types[weight])
            self.build.hint = weight
            mean = self.build.emit(Reduce(kind="mean", axes=(-1,), keepdims=True), value)
            self.centred[weight] = self.build.binary("sub", value, mean)
        return self.centred[weight].name


def row_statistics(graph: Graph, options: PassOptions) -> Graph:
    """No plain norm stands between a linear, pointwise or norm and linears of constant weights."""
    kinds: dict[str, bool] = {}  # a writer adds sums for all its readers or for none
    found = [
        removal
        for node in graph.nodes
        if (removal := _removal(graph, node)) is not None
        and kinds.setdefault(removal.writer.output, removal.sums) == removal.sums
    ]
    return _Rebuilder(graph, found, options.stats_width).run() if found else graph
