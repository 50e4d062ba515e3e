"""Views of a graph."""

from __future__ import annotations

import networkx as nx

from vitc.ir.text import parse_graph

RESIDUAL = """
graph residual(%x: f32[B,5,4]) {
  weight %w: f32[4,4]
  %y, %s = linear(%x, %w, %x) {steps=[add($2)], stats=4}
  %z = linear(%y, %w, %s) {steps=[row_rstd($2, 4.0, 1e-06)]}
  return %z
}"""


def test_networkx_sees_nodes_as_vertices_and_operands_as_edges() -> None:
    view = parse_graph(RESIDUAL).to_networkx()
    assert list(nx.topological_sort(view))[-1] == "z"
    assert view.nodes["y"] == {"op": "linear", "type": "f32[B,5,4]"}
    # The statistics are an edge from the node that makes them, which has the name of its result.
    assert {(u, v, k, d["value"]) for u, v, k, d in view.edges(keys=True, data=True)} == {
        ("x", "y", 0, "x"),
        ("w", "y", 1, "w"),
        ("x", "y", 2, "x"),
        ("y", "z", 0, "y"),
        ("w", "z", 1, "w"),
        ("y", "z", 2, "s"),
    }
