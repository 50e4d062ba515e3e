"""What the pass tests share: equality by interpretation, and what is compared as text."""

from __future__ import annotations

import numpy as np

from vitc.ir.graph import Graph
from vitc.ir.interp import interpret, random_arrays
from vitc.ir.text import print_graph


def difference(before: Graph, after: Graph, batch: int = 2, seed: int = 0) -> float:
    """Largest relative L2 error of any output, in float64, every input and weight redrawn."""
    inputs, weights = random_arrays(before, batch, seed)
    weights = {name: _tame(name, array) for name, array in weights.items()}
    expected = interpret(before, inputs, weights)
    actual = interpret(after, inputs, weights)
    assert list(expected) == list(actual)
    errors: list[float] = []
    for name, old in expected.items():
        assert old.shape == actual[name].shape
        assert np.isfinite(old).all()
        errors.append(float(np.linalg.norm(old - actual[name]) / np.linalg.norm(old)))
    return max(errors)


def _tame(name: str, array: np.ndarray) -> np.ndarray:
    """Weights that keep activations near one, and variances positive."""
    if name.endswith("running_var"):
        return np.abs(array) + 0.1
    return array * (0.5 if array.ndim < 2 else array[0].size ** -0.5)


def body(graph: Graph) -> str:
    """The nodes as text, types left out."""
    lines = print_graph(graph).splitlines()
    nodes = [line.strip().rpartition(" : ")[0] for line in lines if " = " in line]
    returned = next(line.strip() for line in lines if line.strip().startswith("return"))
    return "\n".join([*nodes, returned, ""])


def kernels(graph: Graph) -> list[str]:
    """Names of the ops that run, in order: neither constants nor moves."""
    return [
        node.op.name
        for node in graph.nodes
        if node.op.name != "move" and node.output not in graph.constants
    ]
