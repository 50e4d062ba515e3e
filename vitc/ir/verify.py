"""The verifier: what every pass may rely on and must leave behind."""

from __future__ import annotations

from vitc.errors import GraphError
from vitc.ir.graph import Graph, Node
from vitc.ir.op import TypeMismatch
from vitc.ir.types import TensorType


def verify(graph: Graph) -> None:
    """Checks names, order and types. Raises GraphError naming the node and the reason."""
    types: dict[str, TensorType] = {}
    for port in (*graph.inputs, *graph.weights):
        if port.name in types:
            raise GraphError(f"'%{port.name}' is defined twice in graph '{graph.name}'")
        types[port.name] = port.type
    for node in graph.nodes:
        _verify_node(node, types)
    for name in graph.outputs:
        if name not in types:
            raise GraphError(f"output '%{name}' of graph '{graph.name}' is not defined")


def _verify_node(node: Node, types: dict[str, TensorType]) -> None:
    """Checks one node against the values before it, and adds its results to them."""
    where = f"%{node.output} = {node.op.name}" + (f" (from {node.loc})" if node.loc else "")
    for name in node.inputs:
        if name not in types:
            raise GraphError(f"{where}: operand '%{name}' is not defined before its use")
    for name in node.outputs:
        if name in types or node.outputs.count(name) > 1:
            raise GraphError(f"{where}: '%{name}' is defined twice")
    try:
        results = node.op.infer(*(types[name] for name in node.inputs))
    except (TypeMismatch, ValueError, IndexError) as error:
        shown = ", ".join(f"%{name}: {types[name]}" for name in node.inputs)
        raise GraphError(f"{where}: {error}; operands: {shown}") from error
    if len(results) != len(node.outputs):
        raise GraphError(f"{where}: has {len(node.outputs)} names for {len(results)} results")
    types.update(zip(node.outputs, results, strict=True))
