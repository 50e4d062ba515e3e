"""Runs IR text on a target and compares it with the reference interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from vitc.compiler import CompileOptions, build_graph
from vitc.ir.graph import Graph
from vitc.ir.interp import interpret, random_arrays
from vitc.ir.text import parse_graph
from vitc.ir.types import DType
from vitc.runtime import Module, load


def library_of(graph: Graph | str, folder: Path, *, batch: int = 3, **options: object) -> Module:
    """The graph compiled as it is, without passes; weights are those of random_arrays(seed=0)."""
    graph = parse_graph(graph) if isinstance(graph, str) else graph
    weights = random_arrays(graph, 1, 0)[1]
    wanted = CompileOptions((batch,), "cpu", DType.FLOAT32, DType.FLOAT32, DType.FLOAT32, **options)  # type: ignore[arg-type]
    state = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    build_graph(graph, state, wanted, folder / f"{graph.name}.so")
    return load(folder / f"{graph.name}.so", threads=2)


def errors(
    graph: Graph | str, folder: Path, *, batch: int = 3, scale: float = 1.0
) -> Mapping[str, float]:
    """Relative L2 error of each output against float64, at the full batch and at batch 1."""
    graph = parse_graph(graph) if isinstance(graph, str) else graph
    module = library_of(graph, folder, batch=batch)
    found: dict[str, float] = {}
    for size in (batch, 1):
        inputs, _ = random_arrays(graph, size, size)
        weights = random_arrays(graph, 1, 0)[1]
        inputs = {k: np.asarray(v * scale, np.float32) for k, v in inputs.items()}
        rounded = {k: np.asarray(v, np.float32) for k, v in weights.items()}
        wanted = interpret(graph, inputs, rounded)
        results = module(*(inputs[port.name] for port in graph.inputs))
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip(graph.outputs, results, strict=True):
            found[name] = max(found.get(name, 0.0), relative(result, wanted[name]))
    module.close()
    return found


def relative(result: NDArray[np.float32], wanted: NDArray[np.float64]) -> float:
    """Relative L2 distance; infinite where the shapes differ or something is not finite."""
    if result.shape != wanted.shape or not np.isfinite(result).all():
        return float("inf")
    return float(np.linalg.norm(result - wanted) / max(np.linalg.norm(wanted), 1e-30))
