"""The reference interpreter: what a graph means, in float64, on numpy arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitc.ir.graph import Graph, Node
from vitc.ir.op import Array
from vitc.ir.types import shape_at

Observer = Callable[[Node, tuple[NDArray[np.float64], ...]], None]


def interpret(
    graph: Graph,
    inputs: Mapping[str, Array],
    weights: Mapping[str, Array],
    *,
    observe: Observer | None = None,
) -> dict[str, Array]:
    """Results by output name, float64.

    inputs, weights: arrays of any dtype by name; the batch is read off the first input.
    observe: called after each node with its results. Values are dropped after their last use.
    Raises ValueError naming a missing or misshapen array.
    """
    batch = _batch_of(graph, inputs)
    values: dict[str, Array] = {}
    for port in (*graph.inputs, *graph.weights):
        given = {**weights, **inputs} if port.name in inputs else weights
        if port.name not in given:
            raise ValueError(f"no array for '{port.name}'")
        if tuple(given[port.name].shape) != shape_at(port.type.shape, batch):
            raise ValueError(
                f"'{port.name}' is {given[port.name].shape}, the graph has {port.type}"
            )
        values[port.name] = given[port.name]
    last_use = {name: node for node in graph.nodes for name in node.inputs}
    for node in graph.nodes:
        operands = [np.asarray(values[name], np.float64) for name in node.inputs]
        results = node.op.reference(*operands, batch=batch)
        values.update(zip(node.outputs, results, strict=True))
        if observe is not None:
            observe(node, results)
        for name in set(node.inputs):
            if last_use[name] is node and name not in graph.outputs:
                del values[name]
    return {name: np.asarray(values[name], np.float64) for name in graph.outputs}


def _batch_of(graph: Graph, inputs: Mapping[str, Array]) -> int:
    if not graph.inputs:
        return 1
    first = graph.inputs[0]
    if first.name not in inputs:
        raise ValueError(f"no array for input '{first.name}'")
    return int(inputs[first.name].shape[0])


def random_arrays(graph: Graph, batch: int, seed: int) -> tuple[dict[str, Any], dict[str, Any]]:
    """Standard normal (inputs, weights) for the graph; what rewrite checks and tests run on."""
    rng = np.random.default_rng(seed)
    inputs = {p.name: rng.standard_normal(shape_at(p.type.shape, batch)) for p in graph.inputs}
    weights = {p.name: rng.standard_normal(shape_at(p.type.shape, 1)) for p in graph.weights}
    return inputs, weights
