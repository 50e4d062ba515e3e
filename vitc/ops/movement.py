"""Data movement: index maps, concatenation, gathers, and literal tensors."""

from __future__ import annotations

import base64
import zlib
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from vitc.ir.index_map import IndexMap
from vitc.ir.op import Array, Op, register, require
from vitc.ir.types import Batch, DType, TensorType, per_image

_SCALAR = IndexMap(())
_LITERAL_DTYPES = (DType.FLOAT64, DType.FLOAT32, DType.INT64, DType.INT32, DType.BOOL)


@register
@dataclass(frozen=True)
class Move(Op):
    """Renames elements: element i of the result is element `map`(i) of x, or zero."""

    name: ClassVar[str] = "move"

    map: IndexMap = _SCALAR

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) == 1, "move takes x")
        require(
            types[0].shape == self.map.shape,
            f"move of {types[0]} by a map of {list(self.map.shape)}",
        )
        return (types[0].with_shape(self.map.result),)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return (self.map.apply(arrays[0], batch),)


@register
@dataclass(frozen=True)
class Concat(Op):
    """Its operands one behind the other along `axis`."""

    name: ClassVar[str] = "concat"

    axis: int = 0

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) >= 1, "concat takes at least one operand")
        first, total = types[0], 0
        require(0 <= self.axis < first.rank, f"concat axis {self.axis} of {first}")
        for type_ in types:
            rest = (*type_.shape[: self.axis], *type_.shape[self.axis + 1 :])
            expected = (*first.shape[: self.axis], *first.shape[self.axis + 1 :])
            require(
                type_.rank == first.rank and rest == expected,
                f"concat of {first} and {type_}",
            )
            require(not isinstance(type_.shape[self.axis], Batch), "concat along the batch")
            total += per_image((type_.shape[self.axis],))
        return (
            first.with_shape((*first.shape[: self.axis], total, *first.shape[self.axis + 1 :])),
        )

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return (np.concatenate(arrays, self.axis),)


@register
@dataclass(frozen=True)
class Gather(Op):
    """table [..., V, ...] taken at index [...] along `axis`; index values are checked at run."""

    name: ClassVar[str] = "gather"

    axis: int = 0

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(len(types) == 2, "gather takes table and index")
        table, index = types
        require(not index.dtype.is_float, f"gather index has dtype {index.dtype.value}")
        require(0 <= self.axis < table.rank, f"gather axis {self.axis} of {table}")
        return (
            table.with_shape(
                (*table.shape[: self.axis], *index.shape, *table.shape[self.axis + 1 :])
            ),
        )

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return (np.take(arrays[0], arrays[1].astype(np.int64), self.axis),)


@register
@dataclass(frozen=True)
class Literal(Op):
    """A tensor that is part of the graph itself, such as a table of positions.

    data: base64 of the zlib-compressed little-endian elements, so that text stays one line.
    """

    name: ClassVar[str] = "literal"

    shape: tuple[int, ...] = ()
    dtype: DType = DType.FLOAT32
    data: str = ""

    @staticmethod
    def of(array: Array) -> Literal:
        """The literal that holds `array` (float, integer or bool). Raises ValueError."""
        dtype = DType.parse(str(array.dtype))
        if dtype not in _LITERAL_DTYPES:
            raise ValueError(f"no literal of dtype {dtype.value}")
        raw = np.ascontiguousarray(array).tobytes()
        return Literal(array.shape, dtype, base64.b64encode(zlib.compress(raw, 9)).decode())

    @property
    def array(self) -> Array:
        raw = zlib.decompress(base64.b64decode(self.data))
        return np.reshape(np.frombuffer(raw, np.dtype(self.dtype.value)), self.shape)

    def infer(self, *types: TensorType) -> tuple[TensorType, ...]:
        require(not types, "literal takes no operands")
        return (TensorType(self.shape, self.dtype),)

    def reference(self, *arrays: Array, batch: int) -> tuple[Array, ...]:
        return (self.array.astype(np.float64),)
