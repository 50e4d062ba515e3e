"""Parts of constant vectors, as recipes."""

from __future__ import annotations

import numpy as np

from vitc.ir.builder import Builder, Value
from vitc.ir.op import Array
from vitc.ops import Gather


def picked(build: Builder, vector: Value, order: Array) -> Value:
    """vector[order] for a vector [n]: a slice where the order is a range, else a gather."""
    first, count = int(order[0]), len(order)
    if (order == np.arange(first, first + count)).all():
        return vector if (count,) == vector.shape else build.slice(vector, 0, first, first + count)
    return build.emit(Gather(0), vector, build.literal(np.ascontiguousarray(order, np.int64)))
