"""The verifier refuses every graph that a wrong pass could leave, and names node and reason."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from vitc.errors import GraphError
from vitc.ir.graph import Graph, Node
from vitc.ir.text import parse_graph
from vitc.ir.verify import verify
from vitc.ops import Linear, Norm, Step

GRAPH = parse_graph("""
graph g(%x: f32[B,5,8]) {
  weight %w: f32[8,8]
  weight %b: f32[8]
  %n, %s = norm(%x) {stats=4} @ blocks.0.norm
  %y = linear(%n, %w, %b) {steps=[add($2)]} @ blocks.0.fc
  return %y
}
""")
NORM, LINEAR = GRAPH.nodes


def with_nodes(*nodes: Node) -> Graph:
    return replace(GRAPH, nodes=nodes)


WRONG: dict[str, tuple[Callable[[], Graph], str]] = {
    "use before definition": (
        lambda: with_nodes(LINEAR, NORM),
        r"%y = linear \(from blocks\.0\.fc\): operand '%n' is not defined before its use",
    ),
    "an operand that is gone": (
        lambda: with_nodes(LINEAR),
        "operand '%n' is not defined",
    ),
    "an output that is gone": (lambda: with_nodes(NORM), "output '%y' of graph 'g' is not defined"),
    "a name twice": (
        lambda: with_nodes(NORM, NORM, LINEAR),
        r"%n = norm \(from blocks\.0\.norm\): '%n' is defined twice",
    ),
    "the name of an input": (
        lambda: with_nodes(replace(NORM, outputs=("x", "s")), LINEAR),
        "'%x' is defined twice",
    ),
    "one name for both results": (
        lambda: with_nodes(replace(NORM, outputs=("n", "n")), LINEAR),
        "'%n' is defined twice",
    ),
    "a result without a name": (
        lambda: with_nodes(replace(NORM, outputs=("n",)), LINEAR),
        "has 1 names for 2 results",
    ),
    "a port twice": (
        lambda: replace(GRAPH, inputs=GRAPH.inputs * 2),
        "'%x' is defined twice in graph 'g'",
    ),
    "a weight named as an input": (
        lambda: replace(GRAPH, weights=(*GRAPH.weights, GRAPH.inputs[0])),
        "'%x' is defined twice in graph 'g'",
    ),
    "operands of other types": (
        lambda: with_nodes(NORM, replace(LINEAR, inputs=("n", "b", "w"))),
        r"%y = linear .*operands: %n: f32\[B,5,8\], %b: f32\[8\]",
    ),
    "a step without its operand": (
        lambda: with_nodes(NORM, replace(LINEAR, inputs=("n", "w"))),
        "%y = linear",
    ),
    "half a pair of statistics": (
        lambda: with_nodes(
            replace(NORM, op=Norm(stats=8)),
            replace(
                LINEAR, op=Linear((Step("layer_rstd", 2, (8.0, 1e-6)),)), inputs=("n", "w", "s")
            ),
        ),
        r"pairs of statistics, not f32\[B,5,1\]",
    ),
    "sums of no columns": (
        lambda: with_nodes(replace(NORM, op=Norm(sums=True), outputs=("n",)), LINEAR),
        "sums are of the columns that `stats` says",
    ),
}


def test_the_right_graph() -> None:
    verify(GRAPH)


@pytest.mark.parametrize("case", WRONG)
def test_wrong_graphs(case: str) -> None:
    make, message = WRONG[case]
    with pytest.raises(GraphError, match=message):
        verify(make())
