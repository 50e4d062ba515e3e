"""Parts of a graph in float64: what one kernel should have computed from what it was given."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitc.ir.graph import Graph
from vitc.ir.op import Array


class UnknownValue(ValueError):
    """A value cannot be computed from what is given."""


class Evaluator:
    """Evaluates single values of a graph at one batch.

    weights: state-dict tensors by name.
    """

    def __init__(self, graph: Graph, weights: Mapping[str, Array], batch: int) -> None:
        self._graph = graph
        self._weights = weights
        self._batch = batch

    def compute(self, names: tuple[str, ...], given: Mapping[str, Array]) -> dict[str, Array]:
        """The values called `names`, in float64, from the values `given` and the weights.

        Raises UnknownValue naming a value that neither leads to.
        """
        values = {name: np.asarray(array, np.float64) for name, array in given.items()}
        targets = {name for name in names if name not in given}
        needed, pending = set[int](), list(targets)
        while pending:
            name = pending.pop()
            if name in values:
                continue
            if name in self._weights:
                values[name] = np.asarray(self._weights[name], np.float64)
                continue
            node = self._graph.producers.get(name)
            if node is None:
                raise UnknownValue(f"'%{name}' is not among the kernel's inputs")
            if id(node) not in needed:
                needed.add(id(node))
                pending.extend(node.inputs)
        for node in self._graph.nodes:
            if id(node) in needed:
                operands = [values[name] for name in node.inputs]
                results = node.op.reference(*operands, batch=self._batch)
                for name, result in zip(node.outputs, results, strict=True):
                    values.setdefault(name, result)
        return {name: values[name] for name in names}


def relative(actual: Array, expected: Array) -> float:
    """L2 norm of the difference over that of `expected`; NaN and unequal shapes count as inf."""
    if actual.shape != expected.shape:
        return float("inf")
    difference = float(np.linalg.norm((actual - expected).ravel()))
    size = float(np.linalg.norm(expected.ravel()))
    if np.isnan(difference):
        return float("inf")
    if size == 0.0:
        return 0.0 if difference == 0.0 else float("inf")
    return difference / size
