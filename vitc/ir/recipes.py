"""Recipes: how the final constants of a library come from the tensors of a state dict.

A recipe is an ordinary graph without inputs: its weights are state-dict tensors, its outputs are
the constants that the kernels read. It travels in the manifest as text, so that new weights can be
loaded without the compiler.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from vitc.ir.graph import Graph
from vitc.ir.interp import interpret
from vitc.ir.op import Array
from vitc.ir.text import parse_graph
from vitc.ir.types import DType
from vitc.runtime.payload import WeightArray


def evaluate(recipes_text: str, state: Mapping[str, Array]) -> dict[str, WeightArray]:
    """Final constants by name from `state` (state-dict name to array). Raises ValueError."""
    return evaluate_graph(parse_graph(recipes_text), state)


def evaluate_graph(recipes: Graph, state: Mapping[str, Array]) -> dict[str, WeightArray]:
    """As `evaluate`, for a recipe that is a graph already."""
    results: dict[str, WeightArray] = {}
    wanted = set(recipes.outputs)
    # One output at a time, so that float64 temporaries live no longer than they must.
    for name in recipes.outputs:
        part = recipes.with_nodes(recipes.nodes, (name,)).without_dead_nodes()
        results[name] = _store(interpret(part, {}, state)[name], recipes.types[name].dtype)
    assert set(results) == wanted
    return results


def _store(array: Array, dtype: DType) -> WeightArray:
    """Rounds float64 once, to nearest even, to the storage type."""
    if dtype is DType.BFLOAT16:
        return WeightArray(to_bfloat16(array), dtype.value)
    stored = DType.FLOAT32 if dtype is DType.TF32 else dtype
    # Not ascontiguousarray, which makes a scalar a vector.
    return WeightArray(np.asarray(array, np.dtype(stored.value), order="C"), stored.value)


def to_bfloat16(array: Array) -> Array:
    """The upper halves of float32, rounded to nearest even, as uint16. NaN stays NaN."""
    bits: Array = np.frombuffer(np.ascontiguousarray(array, np.float32).tobytes(), np.uint32)
    bits = np.reshape(bits, array.shape)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    quiet = np.where(np.isnan(array), (bits >> 16) | 0x40, rounded)
    return quiet.astype(np.uint16)
