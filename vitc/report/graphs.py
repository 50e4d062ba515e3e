"""Drawings of a graph: Graphviz text, and SVG where Graphviz is installed."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from vitc.errors import InputError, StorageError, VitcError
from vitc.ir.graph import Graph
from vitc.ir.text import print_attributes


def graph_dot(graph: Graph) -> str:
    """The graph in Graphviz's language; constants are left out, module paths are tooltips."""
    lines = [f"digraph {json.dumps(graph.name)} {{", "  node [shape=box, fontname=monospace];"]
    for port in graph.inputs:
        label = json.dumps(f"{port.name}\n{port.type}")
        lines.append(f"  {json.dumps(port.name)} [shape=ellipse, label={label}];")
    for node in graph.nodes:
        if node.output in graph.constants:
            continue
        attributes = print_attributes(node.op)
        text = f"{node.op.name}{attributes[:80]}\n{node.output}: {graph.types[node.output]}"
        tip = json.dumps(node.loc or node.op.name)
        lines.append(f"  {json.dumps(node.output)} [label={json.dumps(text)}, tooltip={tip}];")
        for name in node.inputs:
            if name in graph.constants:
                continue
            source = graph.producers[name].output if name in graph.producers else name
            lines.append(f"  {json.dumps(source)} -> {json.dumps(node.output)};")
    for name in graph.outputs:
        source = graph.producers[name].output if name in graph.producers else name
        lines.append(f'  {json.dumps(source)} -> "return";')
    return "\n".join([*lines, '  "return" [shape=ellipse];', "}", ""])


def write_graph(graph: Graph, path: Path) -> Path:
    """Writes `.dot` or `.svg`. Raises InputError for another suffix, VitcError without Graphviz."""
    if path.suffix not in (".dot", ".svg"):
        raise InputError(f"cannot draw a graph to '{path.name}'", hint="end it in .dot or .svg")
    text = graph_dot(graph)
    try:
        if path.suffix == ".dot":
            path.write_text(text, encoding="utf-8")
            return path
        program = shutil.which("dot")
        if program is None:
            raise VitcError(
                "SVG needs Graphviz's 'dot'", hint="apt install graphviz, or write a .dot file"
            )
        drawn = subprocess.run(
            [program, "-Tsvg"], input=text, capture_output=True, text=True, check=False
        )
        if drawn.returncode:
            raise VitcError(f"Graphviz failed: {drawn.stderr.strip()[:200]}")
        path.write_text(drawn.stdout, encoding="utf-8")
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror}") from error
    return path
