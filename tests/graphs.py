"""Runs IR text on a target and compares it with the reference interpreter."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vitc.compiler import build_graph
from vitc.ir.graph import Graph
from vitc.ir.interp import interpret, random_arrays
from vitc.ir.text import parse_graph
from vitc.ir.types import DType
from vitc.options import CompileOptions
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import run_passes
from vitc.runtime import Module, load


def assign(text: str, dtype: DType, boundary: DType | None = None) -> Graph:
    """The graph with activations and matrices of `dtype`; inputs and outputs too, or `boundary`."""
    boundary = boundary or (DType.FLOAT32 if dtype is DType.TF32 else dtype)
    options = PassOptions(dtype=dtype, input_dtype=boundary, output_dtype=boundary)
    return run_passes(parse_graph(text), ["assign_dtypes"], options)


def library_of(graph: Graph | str, folder: Path, *, batch: int = 3, target: str = "cpu") -> Module:
    """The graph compiled as it is, without passes; weights are those of random_arrays(seed=0)."""
    graph = parse_graph(graph) if isinstance(graph, str) else graph
    weights = random_arrays(graph, 1, 0)[1]
    wanted = CompileOptions((batch,), target, DType.FLOAT32, DType.FLOAT32, DType.FLOAT32)
    state = {name: np.asarray(array, np.float32) for name, array in weights.items()}
    build_graph(graph, state, wanted, folder / f"{graph.name}.so")
    return load(folder / f"{graph.name}.so", threads=2)


def errors(
    graph: Graph | str, folder: Path, *, batch: int = 3, target: str = "cpu"
) -> Mapping[str, float]:
    """Relative L2 error of each output against float64, at the full batch and at batch 1.

    Inputs are rounded to the library's dtype beforehand, so that only its own errors count.
    """
    graph = parse_graph(graph) if isinstance(graph, str) else graph
    module = library_of(graph, folder, batch=batch, target=target)
    found: dict[str, float] = {}
    weights = {k: np.asarray(v, np.float32) for k, v in random_arrays(graph, 1, 0)[1].items()}
    for size in (batch, 1):
        arrays, _ = random_arrays(graph, size, size)
        tensors = {
            port.name: torch.from_numpy(arrays[port.name]).to(getattr(torch, port.dtype))
            for port in module.inputs
        }
        wanted = interpret(graph, {k: v.double().numpy() for k, v in tensors.items()}, weights)
        results: Any = module(*tensors.values())
        results = results if isinstance(results, tuple) else (results,)
        for name, result in zip(graph.outputs, results, strict=True):
            error = relative(result.double().numpy(), wanted[name])
            found[name] = max(found.get(name, 0.0), error)
    module.close()
    return found


def relative(result: NDArray[Any], wanted: NDArray[Any]) -> float:
    """Relative L2 distance; infinite where the shapes differ or something is not finite."""
    if result.shape != wanted.shape or not np.isfinite(result).all():
        return float("inf")
    return float(np.linalg.norm(result - wanted) / max(np.linalg.norm(wanted), 1e-30))
