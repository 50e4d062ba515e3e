"""The residual stream is kept centred, so that layer norms on it become RMS norms.

A layer norm does not see the mean of its row. When everything that writes the stream can leave the
mean out (products: by centring their weights over the output channels; tables: likewise) and
everything that reads it does not care, the means are never computed. The equivalence is stated by
Ashkboos et al. 2024 (SliceGPT) and Jiang et al. 2023 (Pre-RMSNorm).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ops import Concat, Conv2d, Fused, Linear, Move, Norm, Pointwise, Reduce
from vitc.passes.maps import keeps_columns
from vitc.passes.options import PassOptions

LINEAR_STEPS = frozenset(("add", "sub", "scale"))


class _Stream:
    """Finds the largest set of values that can be centred."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.types = graph.types
        made = (name for node in graph.nodes for name in node.outputs[:1])
        self.centred = {name for name in made if self._is_live(name)}
        self._shrink()
        self._keep_useful()

    def _is_live(self, name: str) -> bool:
        return not self._is_constant(name) and bool(self.types[name].shape)

    def _is_constant(self, name: str) -> bool:
        return name in self.graph.constants and not self.types[name].batched

    def _shrink(self) -> None:
        order = [*self.graph.nodes, *reversed(self.graph.nodes)]
        before = -1
        while before != len(self.centred):
            before = len(self.centred)
            for node in order:
                name = node.output
                if name in self.centred and not (self._can_write(node) and self._can_be_read(name)):
                    self.centred.remove(name)

    def _fits(self, names: Iterable[str], columns: object) -> bool:
        """Whether all are centred, or constants that can be, over the same columns."""
        return all(
            (name in self.centred or self._is_constant(name))
            and self.types[name].shape[-1:] == (columns,)
            for name in names
        )

    def _can_write(self, node: Node) -> bool:
        op, columns = node.op, self.types[node.output].shape[-1]
        if isinstance(op, Fused) and (op.stats or op.dtype is not None):
            return False
        if isinstance(op, Norm):
            return not op.recenter
        if isinstance(
            op, Move
        ):  # merged rows do not do: a norm over four sees how their means differ
            return keeps_columns(op.map) and self._fits(node.inputs, columns)
        if isinstance(op, Concat):
            return op.axis != len(self.types[node.output].shape) - 1 and self._fits(
                node.inputs, columns
            )
        if not isinstance(op, Linear | Conv2d | Pointwise | Reduce):
            return False
        if any(step.kind not in LINEAR_STEPS for step in op.steps):
            return False
        if isinstance(op, Linear | Conv2d):
            return self._is_constant(node.inputs[1]) and self._fits(node.inputs[2:], columns)
        return _averages_rows(op, self.types[node.inputs[0]].rank) and self._fits(
            node.inputs, columns
        )

    def _can_be_read(self, name: str) -> bool:
        if name in self.graph.outputs:
            return False
        return all(self._is_read_well(name, node) for node in self.graph.users.get(name, ()))

    def _is_read_well(self, name: str, node: Node) -> bool:
        operands = node.inputs
        if is_layer_norm(node) and operands[0] == name and name not in operands[1:]:
            return True
        if isinstance(node.op, Linear | Conv2d) and name in operands[:2]:
            return False
        return node.output in self.centred

    def _keep_useful(self) -> None:
        """Drops streams (connected values) that no more layer norms read than norms write."""
        group = {name: name for name in self.centred}

        def root(name: str) -> str:
            while group[name] != name:
                group[name] = group[group[name]]
                name = group[name]
            return name

        for node in self.graph.nodes:
            if node.output in self.centred and not isinstance(node.op, Norm):
                for name in node.inputs:
                    if name in self.centred:
                        group[root(name)] = root(node.output)
        gain = dict.fromkeys(self.centred, 0)
        for node in self.graph.nodes:
            if node.output in self.centred and isinstance(node.op, Norm):
                gain[root(node.output)] -= 1
            if is_layer_norm(node) and node.inputs[0] in self.centred:
                gain[root(node.inputs[0])] += 1
        self.centred = {name for name in self.centred if gain[root(name)] > 0}


def is_layer_norm(node: Node) -> bool:
    """Whether the node subtracts the row's mean."""
    return isinstance(node.op, Norm) and node.op.kind == "layer"


def _averages_rows(op: Pointwise | Reduce, rank: int) -> bool:
    """Whether the op (less its steps) is linear and treats each column alike."""
    if isinstance(op, Pointwise):
        return True
    return op.kind in ("mean", "sum") and all(axis % rank != rank - 1 for axis in op.axes)


class _Rebuilder:
    """Writes the graph anew with the stream centred."""

    def __init__(self, graph: Graph, centred: set[str]) -> None:
        self.graph = graph
        self.centred = centred
        self.build = Builder(graph.types, numbered=True)
        self.values: dict[str, Value] = {}
        self.constants: dict[tuple[str, int], Value] = {}

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self.build.loc, self.build.hint = node.loc, node.output
            if node.output in self.centred:
                self.values[node.output] = self._written(node)
            elif any(name in self.centred for name in node.inputs):
                self._read(node)
            else:
                self.build.nodes.append(node)
        return self.graph.with_nodes(self.build.nodes).without_dead_nodes()

    def _read(self, node: Node) -> None:
        assert isinstance(node.op, Norm)
        inputs = (self.values[node.inputs[0]].name, *node.inputs[1:])
        self.build.nodes.append(replace(node, op=replace(node.op, kind="rms"), inputs=inputs))

    def _written(self, node: Node) -> Value:
        op = node.op
        if isinstance(op, Norm):
            read = [self._value(name) for name in node.inputs]
            kind = "rms" if node.inputs[0] in self.centred else op.kind
            return self.build.emit(replace(op, kind=kind, recenter=True), *read)
        if isinstance(op, Linear | Conv2d):
            x, w, *rest = node.inputs
            operands = [self._value(x), self._centred_constant(w, 0)]
        else:
            operands, rest = list[Value](), list(node.inputs)
        operands += [
            self.values[name] if name in self.centred else self._centred_constant(name, -1)
            for name in rest
        ]
        self.build.hint = node.output
        return self.build.emit(op, *operands)

    def _value(self, name: str) -> Value:
        return self.values.get(name) or Value(name, self.graph.types[name])

    def _centred_constant(self, name: str, axis: int) -> Value:
        """constant - mean(constant) over the channels."""
        if (name, axis) not in self.constants:
            constant = Value(name, self.graph.types[name])
            self.build.hint = name
            mean = self.build.emit(Reduce(kind="mean", axes=(axis,), keepdims=True), constant)
            self.constants[name, axis] = self.build.binary("sub", constant, mean)
        return self.constants[name, axis]


def centre_residual(graph: Graph, options: PassOptions) -> Graph:
    """No layer norm reads a stream that its writers could have centred."""
    stream = _Stream(graph)
    return _Rebuilder(graph, stream.centred).run() if stream.centred else graph
