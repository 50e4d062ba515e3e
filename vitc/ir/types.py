"""Tensor types: dtypes, dimensions and shapes. The batch is the one symbolic dimension."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from math import prod


class DType(Enum):
    """Element types. The value is the name that users write; `short` is the name in IR text."""

    FLOAT64 = "float64"
    FLOAT32 = "float32"
    TF32 = "tf32"  # stored as float32, multiplied by tensor cores in tf32
    FLOAT16 = "float16"
    BFLOAT16 = "bfloat16"
    FLOAT8_E4M3 = "float8_e4m3"
    INT8 = "int8"
    UINT8 = "uint8"
    INT32 = "int32"
    INT64 = "int64"
    BOOL = "bool"

    @property
    def short(self) -> str:
        return _SHORT[self]

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return _BYTES[self]

    @property
    def is_float(self) -> bool:
        return self.value.startswith(("float", "bfloat", "tf"))

    @staticmethod
    def parse(name: str) -> DType:
        """The dtype called `name`, long ("float32") or short ("f32"). Raises ValueError."""
        for dtype in DType:
            if name in (dtype.value, dtype.short):
                return dtype
        known = ", ".join(dtype.value for dtype in DType)
        raise ValueError(f"unknown dtype '{name}'; known: {known}")


_SHORT = {
    DType.FLOAT64: "f64",
    DType.FLOAT32: "f32",
    DType.TF32: "tf32",
    DType.FLOAT16: "f16",
    DType.BFLOAT16: "bf16",
    DType.FLOAT8_E4M3: "e4m3",
    DType.INT8: "i8",
    DType.UINT8: "u8",
    DType.INT32: "i32",
    DType.INT64: "i64",
    DType.BOOL: "bool",
}
_BYTES = {
    DType.FLOAT64: 8,
    DType.FLOAT32: 4,
    DType.TF32: 4,
    DType.FLOAT16: 2,
    DType.BFLOAT16: 2,
    DType.FLOAT8_E4M3: 1,
    DType.INT8: 1,
    DType.UINT8: 1,
    DType.INT32: 4,
    DType.INT64: 8,
    DType.BOOL: 1,
}


@dataclass(frozen=True)
class Batch:
    """The symbolic dimension `count * B`, where B is the batch of a run."""

    count: int = 1

    def __str__(self) -> str:
        return "B" if self.count == 1 else f"{self.count}B"


Dim = int | Batch
Shape = tuple[Dim, ...]


def at_batch(dim: Dim, batch: int) -> int:
    """The dimension's size when the batch is `batch`."""
    return dim.count * batch if isinstance(dim, Batch) else dim


def shape_at(shape: Sequence[Dim], batch: int) -> tuple[int, ...]:
    """The sizes of all dimensions when the batch is `batch`."""
    return tuple(at_batch(dim, batch) for dim in shape)


def multiply(dims: Iterable[Dim]) -> Dim:
    """The product of the dimensions. Raises ValueError for B * B."""
    count, symbolic = 1, False
    for dim in dims:
        if isinstance(dim, Batch):
            if symbolic:
                raise ValueError("a shape has the batch in two dimensions")
            count, symbolic = count * dim.count, True
        else:
            count *= dim
    return Batch(count) if symbolic else count


def per_image(shape: Sequence[Dim]) -> int:
    """Number of elements at batch 1."""
    return prod(shape_at(shape, 1))


def parse_dim(text: str) -> Dim:
    """The dimension that `str` printed: "197", "B" or "64B". Raises ValueError."""
    if text.endswith("B"):
        return Batch(int(text[:-1] or "1"))
    return int(text)


@dataclass(frozen=True)
class TensorType:
    """A dense row-major tensor. Spatial tensors are channels-last by convention of the ops."""

    shape: Shape
    dtype: DType

    def __str__(self) -> str:
        return f"{self.dtype.short}[{','.join(map(str, self.shape))}]"

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def batched(self) -> bool:
        """Whether any dimension depends on the batch."""
        return any(isinstance(dim, Batch) for dim in self.shape)

    def nbytes(self, batch: int = 1) -> int:
        return prod(shape_at(self.shape, batch)) * self.dtype.itemsize

    def with_shape(self, shape: Sequence[Dim]) -> TensorType:
        return TensorType(tuple(shape), self.dtype)

    def with_dtype(self, dtype: DType) -> TensorType:
        return TensorType(self.shape, dtype)


def broadcast(shapes: Sequence[Shape]) -> Shape:
    """numpy's broadcasting rule over symbolic shapes. Raises ValueError naming the shapes."""
    rank = max(len(shape) for shape in shapes)
    result: list[Dim] = []
    for axis in range(rank):
        dims = {
            shape[axis - rank + len(shape)] for shape in shapes if axis - rank + len(shape) >= 0
        }
        dims.discard(1)
        if len(dims) > 1:
            shown = " and ".join(f"[{','.join(map(str, shape))}]" for shape in shapes)
            raise ValueError(f"cannot broadcast {shown}")
        result.append(dims.pop() if dims else 1)
    return tuple(result)
