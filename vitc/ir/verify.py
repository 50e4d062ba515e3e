"""The verifier: what every pass may rely on and must leave behind."""

from __future__ import annotations

from vitc.errors import GraphError
from vitc.ir.graph import Graph
from vitc.ir.op import TypeMismatch


def verify(graph: Graph) -> None:
    """Checks names, order and types. Raises GraphError naming the node and the reason."""
    known = set[str]()
    for port in (*graph.inputs, *graph.weights):
        if port.name in known:
            raise GraphError(f"'%{port.name}' is defined twice in graph '{graph.name}'")
        known.add(port.name)
    types = {port.name: port.type for port in (*graph.inputs, *graph.weights)}
    for node in graph.nodes:
        where = f"%{node.output} = {node.op.name}" + (f" (from {node.loc})" if node.loc else "")
        for name in node.inputs:
            if name not in known:
                raise GraphError(f"{where}: operand '%{name}' is not defined before its use")
        for name in node.outputs:
            if name in known:
                raise GraphError(f"{where}: '%{name}' is defined twice")
            known.add(name)
        try:
            results = node.op.infer(*(types[name] for name in node.inputs))
        except (TypeMismatch, ValueError, IndexError) as error:
            shown = ", ".join(f"%{name}: {types[name]}" for name in node.inputs)
            raise GraphError(f"{where}: {error}; operands: {shown}") from error
        if len(results) != len(node.outputs):
            raise GraphError(f"{where}: has {len(node.outputs)} names for {len(results)} results")
        types.update(zip(node.outputs, results, strict=True))
    for name in graph.outputs:
        if name not in known:
            raise GraphError(f"output '%{name}' of graph '{graph.name}' is not defined")
