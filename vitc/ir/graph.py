"""The graph: frozen nodes in SSA order over named, typed values."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any, cast

from vitc.ir.op import Op
from vitc.ir.types import TensorType

if TYPE_CHECKING:
    import networkx as nx


@dataclass(frozen=True)
class Node:
    """One op applied to named values. `loc` is the module path it came from."""

    op: Op
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    loc: str = ""

    @property
    def output(self) -> str:
        """The name of the first (mostly the only) result."""
        return self.outputs[0]


@dataclass(frozen=True)
class Port:
    """A named, typed graph input or weight."""

    name: str
    type: TensorType


@dataclass(frozen=True)
class Graph:
    """A function from inputs and weights to outputs.

    `weights` are the tensors of the model's state dict, by their names there. Nodes that depend on
    weights alone are constants; together they are the weights' recipe (`constants`).
    """

    name: str
    inputs: tuple[Port, ...]
    weights: tuple[Port, ...]
    nodes: tuple[Node, ...]
    outputs: tuple[str, ...]

    @cached_property
    def types(self) -> Mapping[str, TensorType]:
        """Type of every value, inferred anew from inputs and weights. Raises TypeMismatch."""
        types = {port.name: port.type for port in (*self.inputs, *self.weights)}
        for node in self.nodes:
            results = node.op.infer(*(types[name] for name in node.inputs))
            types.update(zip(node.outputs, results, strict=True))
        return types

    @cached_property
    def producers(self) -> Mapping[str, Node]:
        """The node that makes each value (inputs and weights have none)."""
        return {name: node for node in self.nodes for name in node.outputs}

    @cached_property
    def users(self) -> Mapping[str, tuple[Node, ...]]:
        """Nodes that read each value, in order; a node that reads it twice is listed twice."""
        users: dict[str, list[Node]] = {}
        for node in self.nodes:
            for name in node.inputs:
                users.setdefault(name, []).append(node)
        return {name: tuple(nodes) for name, nodes in users.items()}

    @cached_property
    def constants(self) -> frozenset[str]:
        """Values that depend on no input and not on the batch: weights, literals, what is made of
        them.
        """
        known = {port.name for port in self.weights}
        for node in self.nodes:
            fixed = not any(self.types[name].batched for name in node.outputs)
            if fixed and all(name in known for name in node.inputs):
                known.update(node.outputs)
        return frozenset(known)

    def with_nodes(self, nodes: Iterable[Node], outputs: tuple[str, ...] | None = None) -> Graph:
        return replace(self, nodes=tuple(nodes), outputs=outputs or self.outputs)

    def without_dead_nodes(self) -> Graph:
        """The graph less the nodes (and weights) that no output needs."""
        live, kept = set(self.outputs), list[Node]()
        for node in reversed(self.nodes):
            if not live.isdisjoint(node.outputs):
                kept.append(node)
                live.update(node.inputs)
        weights = tuple(port for port in self.weights if port.name in live)
        return replace(self, nodes=tuple(reversed(kept)), weights=weights)

    def to_networkx(self) -> nx.MultiDiGraph[str]:
        """A view for ordering, dominance and drawing: one vertex a node, edges keyed by operand."""
        import networkx as nx  # not needed, and perhaps not there, where libraries only run

        view = cast(Any, nx).MultiDiGraph(name=self.name)  # networkx ships no types
        for port in (*self.inputs, *self.weights):
            view.add_node(port.name, op="input", type=str(port.type))
        for node in self.nodes:
            view.add_node(node.output, op=node.op.name, type=str(self.types[node.output]))
            for index, name in enumerate(node.inputs):
                source = self.producers[name].output if name in self.producers else name
                view.add_edge(source, node.output, key=index, value=name)
        return view
