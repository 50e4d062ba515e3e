"""The element types of a library: their names in the C ABI, in safetensors and in numpy."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np


class DType(NamedTuple):
    """One element type.

    Attributes:
        name: as written in manifests and in vitc.compile(dtype=).
        code: value of vitc_dtype in the C ABI.
        macro: the enumerator of that value.
        safetensors: name in a safetensors header.
        storage: numpy dtype that holds its bytes; unsigned integers where numpy has no such type.
        exact: whether `storage` is the type itself, so that numpy can calculate with it.
    """

    name: str
    code: int
    macro: str
    safetensors: str
    storage: np.dtype[np.generic]
    exact: bool

    @property
    def itemsize(self) -> int:
        """Bytes per element."""
        return self.storage.itemsize


_ALL = (
    DType("float32", 0, "VITC_FLOAT32", "F32", np.dtype(np.float32), True),
    DType("float16", 1, "VITC_FLOAT16", "F16", np.dtype(np.float16), True),
    DType("bfloat16", 2, "VITC_BFLOAT16", "BF16", np.dtype(np.uint16), False),
    DType("int8", 3, "VITC_INT8", "I8", np.dtype(np.int8), True),
    DType("float8_e4m3", 4, "VITC_FLOAT8_E4M3", "F8_E4M3", np.dtype(np.uint8), False),
    DType("uint8", 5, "VITC_UINT8", "U8", np.dtype(np.uint8), True),
    DType("int32", 6, "VITC_INT32", "I32", np.dtype(np.int32), True),
    DType("int64", 7, "VITC_INT64", "I64", np.dtype(np.int64), True),
)
DTYPES: dict[str, DType] = {dtype.name: dtype for dtype in _ALL}
BY_CODE: dict[int, DType] = {dtype.code: dtype for dtype in _ALL}
BY_SAFETENSORS: dict[str, DType] = {dtype.safetensors: dtype for dtype in _ALL}
