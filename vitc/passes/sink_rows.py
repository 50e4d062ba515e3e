"""Rows (and columns) that nobody reads are not computed.

What is read of each value is found from the outputs back; then the graph is rebuilt on those parts.
A classifier that reads the class token alone leaves, in the last block, one row of queries,
projection and MLP, while keys and values keep all rows.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ir.index_map import IndexMap, Slice
from vitc.ir.types import Batch, Dim, Shape, per_image
from vitc.ops import Attention, Concat, Fused, Linear, Move, Norm, Pointwise, Softmax
from vitc.passes.maps import canonical, columns_read
from vitc.passes.options import PassOptions
from vitc.passes.rewrite import Match, Replacement, rewrite, rule
from vitc.passes.spans import (
    Span,
    Spans,
    aligned,
    everything,
    hull,
    normal,
    slices,
    through_map,
)
from vitc.passes.steps import bound_steps, emit_steps, main_operands

WORTH = 0.75  # residual sums are cut to at most this part: a cut makes the other operand strided


def _computed(node: Node, wanted: Spans, shapes: Sequence[Shape], shape: Shape) -> Spans:
    """The part of its result that the node will compute, given which part is read."""
    op = node.op
    spans = list(wanted)
    if _has_row_operands(node, shapes, shape):
        spans = [
            span if _is_worth_it(span, dim) else None
            for span, dim in zip(wanted, shape, strict=True)
        ]
    if isinstance(op, Fused) and op.stats:
        return everything(shape)
    if isinstance(op, Linear):
        spans[-1] = wanted[-1]  # unread columns are left out of the weight, which costs nothing
    elif isinstance(op, Norm | Softmax):
        spans[-1] = None
    elif isinstance(op, Attention):  # regions speak of all tokens
        spans = [None, None, None if op.regions else spans[2], None]
    elif not isinstance(op, Pointwise | Concat | Move):
        return everything(shape)
    return tuple(spans)


def _has_row_operands(node: Node, shapes: Sequence[Shape], shape: Shape) -> bool:
    """Whether the node reads several operands row by row, as a residual sum does."""
    first = node.op.main_operands if isinstance(node.op, Fused) else 1
    others = shapes[1:] if isinstance(node.op, Concat) else shapes[first:]
    return any(len(other) == len(shape) and other[:-1] == shape[:-1] for other in others)


def _is_worth_it(span: Span, dim: Dim) -> bool:
    return span is not None and not isinstance(dim, Batch) and span[1] - span[0] <= WORTH * dim


def _operand_spans(node: Node, made: Spans, shapes: Sequence[Shape]) -> list[Spans]:
    """What the node reads of each operand to compute the part `made` of its result."""
    op = node.op
    if isinstance(op, Move):
        return [through_map(op.map, made)[0]]
    if all(span is None for span in made):
        return [everything(shape) for shape in shapes]
    if isinstance(op, Concat):
        return [_part(made, op.axis, offset, shape) for offset, shape in _parts(op, shapes)]
    rows = (*made[:-1], None)
    spans = [aligned(made, shape) for shape in shapes]
    if isinstance(op, Fused):
        for step in op.steps:
            if step.scales_rows and step.operand is not None:
                spans[step.operand] = rows
    if isinstance(op, Linear):
        spans[:2] = [rows, (made[-1], None)]
    elif isinstance(op, Attention):
        spans[:3] = [made, everything(shapes[1]), everything(shapes[2])]
        if op.bias:
            spans[3] = aligned((*made[:-1], None), shapes[3])
    return spans


def _parts(op: Concat, shapes: Sequence[Shape]) -> list[tuple[int, Shape]]:
    offsets, total = list[tuple[int, Shape]](), 0
    for shape in shapes:
        offsets.append((total, shape))
        total += per_image(shape[op.axis : op.axis + 1])
    return offsets


def _part(made: Spans, axis: int, offset: int, shape: Shape) -> Spans:
    """The span of one part of a concat; (0, 0) on the axis when nothing of it is read."""
    span, size = made[axis], per_image(shape[axis : axis + 1])
    if span is not None:
        start, stop = max(span[0] - offset, 0), min(span[1] - offset, size)
        span = (start, stop) if start < stop else (0, 0)
    return normal((*made[:axis], span, *made[axis + 1 :]), shape)


def _is_empty(spans: Spans) -> bool:
    return (0, 0) in spans


def _read_parts(graph: Graph) -> dict[str, Spans]:
    """What is to be computed of each value that nodes make and something reads."""
    wanted = {name: everything(graph.types[name].shape) for name in graph.outputs}
    computed: dict[str, Spans] = {}
    for node in reversed(graph.nodes):
        if node.output not in wanted and len(node.outputs) == 1:
            continue
        shape = graph.types[node.output].shape
        asked = normal(wanted.get(node.output, everything(shape)), shape)
        constant = node.output in graph.constants
        shapes = [graph.types[name].shape for name in node.inputs]
        made = everything(shape) if constant else _computed(node, asked, shapes, shape)
        computed[node.output] = made
        for name, spans in zip(node.inputs, _operand_spans(node, made, shapes), strict=True):
            if not _is_empty(spans):
                wanted[name] = hull(wanted[name], spans) if name in wanted else spans
    return computed


class _Trimmer:
    """Rebuilds a graph on the parts of its values that are read."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.computed = _read_parts(graph)
        self.build = Builder(graph.types, numbered=True)
        self.values: dict[str, Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            if node.output in self.computed:
                self._node(node)
        outputs = tuple(self._value(name).name for name in self.graph.outputs)
        return self.graph.with_nodes(self.build.nodes, outputs).without_dead_nodes()

    def _value(self, name: str) -> Value:
        return self.values.get(name) or Value(name, self.graph.types[name])

    def _node(self, node: Node) -> None:
        made = self.computed[node.output]
        shapes = [self.graph.types[name].shape for name in node.inputs]
        spans, op = _operand_spans(node, made, shapes), node.op
        self.build.loc = node.loc
        if isinstance(op, Move):
            whole = all(span is None for span in self._held(node.inputs[0]))
            if whole:  # nothing is gained by cutting before the move
                spans = [everything(shapes[0])]
                op = _cut_behind(op, made)
            else:
                op = Move(canonical(through_map(op.map, made)[1]))
        read = [
            self._cut(name, part)
            for name, part in zip(node.inputs, spans, strict=True)
            if not _is_empty(part)
        ]
        names = tuple(value.name for value in read)
        if all(span is None for span in made):  # the same value keeps its name
            self.build.nodes.append(Node(op, names, node.outputs, node.loc))
            return
        self.build.hint = node.output
        results = self.build.emit_all(op, *read)
        self.values.update(zip(node.outputs, results, strict=True))

    def _held(self, name: str) -> Spans:
        """The part of a value that is there."""
        return self.computed.get(name, everything(self.graph.types[name].shape))

    def _cut(self, name: str, want: Spans) -> Value:
        """The wanted part of a value."""
        shape = self.graph.types[name].shape
        views = slices(self._held(name), normal(want, shape), shape)
        self.build.hint = name
        return self.build.view(self._value(name), *views) if views else self._value(name)


def _cut_behind(op: Move, made: Spans) -> Move:
    """The move, then slices of its result."""
    shape = op.map.result
    views = slices(everything(shape), made, shape)
    return Move(canonical(IndexMap(op.map.shape, (*op.map.views, *views)))) if views else op


@rule
def rows_before_product(match: Match, node: Node) -> Replacement:
    """slice(x w^T) = slice(x) w^T, where other readers need all rows of other columns"""
    found = _row_slices(match, node, Linear)
    if found is None or not isinstance(node.op, Move):
        return None
    source, cuts, rest = found
    mask = columns_read(node.op.map)
    for reader in match.readers(source.output):
        mine = match.current(reader.output) == node.output
        if not mine and not isinstance(reader.op, Move):
            return None
        if not mine and isinstance(reader.op, Move) and (columns_read(reader.op.map) & mask).any():
            return None
    return _on_rows(match, source, cuts, rest)


@rule
def rows_before_norm(match: Match, node: Node) -> Replacement:
    """slice(f(x)) = f(slice(x)) for row-wise f and few rows, even where others need all rows"""
    found = _row_slices(match, node, Norm) or _row_slices(match, node, Pointwise)
    return None if found is None else _on_rows(match, *found)


def _row_slices(
    match: Match, node: Node, kind: type[Linear] | type[Norm] | type[Pointwise]
) -> tuple[Node, tuple[Slice, ...], IndexMap] | None:
    """(what makes x, slices of few of its rows, the rest of the map) for a move of x."""
    made = match.producer(node.inputs[0], kind) if isinstance(node.op, Move) else None
    if made is None or not isinstance(node.op, Move) or made[1].stats:
        return None
    if match.types[made[0].inputs[0]].shape[:-1] != node.op.map.shape[:-1]:
        return None
    shape, views = node.op.map.shape, list(node.op.map.views)
    cuts: list[Slice] = []
    while views and isinstance(view := views[0], Slice) and view.axis < len(shape) - 1:
        cuts.append(view)
        del views[0]
    part = shape
    for cut in cuts:
        part = cut.infer(part)
    if not cuts or per_image(part[1:]) * 2 > per_image(shape[1:]):
        return None
    return made[0], tuple(cuts), IndexMap(part, tuple(views))


def _on_rows(match: Match, source: Node, cuts: tuple[Slice, ...], rest: IndexMap) -> Value:
    """The row-wise node on the rows that the slices leave, then the rest of the map."""
    op = source.op
    assert isinstance(op, Linear | Norm | Pointwise)
    shape = match.types[source.output].shape
    mains = list(main_operands(match, source, op))
    match.build.loc = source.loc

    def cut(value: Value) -> Value:
        rank = len(shape) - len(value.shape)
        views = [
            Slice(c.axis - rank, c.start, c.stop, c.step)
            for c in cuts
            if c.axis >= rank and value.shape[c.axis - rank] != 1
        ]
        match.build.hint = value.name
        return match.build.view(value, *views) if views else value

    mains[0] = cut(mains[0])
    steps = [
        replace(step, operand=step.operand and cut(step.operand))
        for step in bound_steps(match, source, op)
    ]
    match.build.hint = source.output
    result = emit_steps(match.build, op, mains, steps)[0]
    return match.build.emit(Move(rest), result) if rest.views else result


RULES = (rows_before_product, rows_before_norm)


def sink_rows(graph: Graph, options: PassOptions) -> Graph:
    """No row-wise op computes rows, and no linear columns, that nothing reads."""
    graph = _Trimmer(graph).run()
    split = rewrite(graph, options.enabled(RULES), check=options.check)
    return graph if split is graph else _Trimmer(split).run()
