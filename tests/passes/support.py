"""What the pass tests share: text cases, equality by interpretation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from vitc.ir.graph import Graph
from vitc.ir.interp import interpret, random_arrays
from vitc.ir.text import parse_graph, print_graph
from vitc.ir.verify import verify
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import run_passes

CHECKED = PassOptions(check=True, stats_width=16)


def graph_of(body: str) -> Graph:
    """A graph from its text without the first line's boilerplate."""
    return parse_graph(body if body.lstrip().startswith("graph") else f"graph case{body}")


def difference(before: Graph, after: Graph, batch: int = 2, seed: int = 0) -> float:
    """Largest relative L2 error of any output, on random inputs and weights, in float64."""
    inputs, weights = random_arrays(before, batch, seed)
    # Deep stacks of standard normal weights overflow exponentials; halves keep them tame.
    weights = {name: 0.5 * array for name, array in weights.items()}
    expected = list(interpret(before, inputs, weights).values())
    actual = list(interpret(after, inputs, weights).values())
    assert len(expected) == len(actual)
    errors = []
    for old, new in zip(expected, actual, strict=True):
        assert old.shape == new.shape
        assert np.isfinite(old).all()
        errors.append(float(np.linalg.norm(old - new) / np.linalg.norm(old)))
    return max(errors)


def optimise(text: str, passes: Sequence[str], options: PassOptions = CHECKED) -> Graph:
    """The graph after the passes, every rule application checked and the whole compared."""
    before = graph_of(text)
    after = run_passes(before, passes, options)
    verify(after)
    assert parse_graph(print_graph(after)) == after
    assert difference(before, after) < 1e-10
    return after


def body(graph: Graph) -> str:
    """The nodes as text, types left out, for comparisons that stay readable."""
    lines = print_graph(graph).splitlines()
    nodes = [line.strip().rpartition(" : ")[0] for line in lines if " = " in line]
    return "\n".join([*nodes, next(line.strip() for line in lines if "return" in line)])


def expect(graph: Graph, text: str) -> None:
    wanted = "\n".join(line.strip() for line in text.strip().splitlines())
    assert body(graph) == wanted, body(graph)


def kernels(graph: Graph) -> list[str]:
    """Names of the ops that run: neither constants nor moves."""
    return [
        node.op.name
        for node in graph.nodes
        if node.op.name != "move" and node.output not in graph.constants
    ]
