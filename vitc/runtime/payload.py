"""The weights of a library as a safetensors file: layout, writing, reading.

The same bytes are the payload inside a library and the `.safetensors` file beside one
(https://github.com/huggingface/safetensors#format): u64 length of the header, the header (JSON),
then the data. Every weight starts at a multiple of ALIGNMENT bytes of the file. The format forbids
holes, so that gaps are filled by small uint8 tensors whose names start with PADDING. The last of
them holds the crc32 of all before it, little endian: whoever has that number knows the file as his
without reading it through.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np

from vitc.errors import WeightsError
from vitc.runtime.dtypes import BY_SAFETENSORS, DTYPES

ALIGNMENT = 128  # bytes: a line of a GPU's L2 cache, so that rows of whole lines begin with one
PADDING = "__padding_"
_LENGTH_BYTES = 8
CRC_BYTES = 4
Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class WeightArray:
    """An array with the name of its element type, since numpy lacks bfloat16 and float8.

    Attributes:
        data: any shape; bfloat16 is held as uint16 and float8_e4m3 as uint8.
        dtype: a key of DTYPES.
    """

    data: Array
    dtype: str

    def __post_init__(self) -> None:
        if self.dtype not in DTYPES:
            raise WeightsError(f"'{self.dtype}' is not an element type; known: {', '.join(DTYPES)}")
        storage = DTYPES[self.dtype].storage
        if self.data.dtype != storage:
            raise WeightsError(f"{self.dtype} is stored as {storage}, not as {self.data.dtype}")

    @property
    def spec(self) -> WeightSpec:
        """Element type and shape."""
        return WeightSpec(self.dtype, tuple(self.data.shape))


@dataclass(frozen=True)
class WeightSpec:
    """Element type (a key of DTYPES) and shape of a weight."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def bytes(self) -> int:
        """Size without padding."""
        count = 1
        for size in self.shape:
            count *= size
        return count * DTYPES[self.dtype].itemsize


@dataclass(frozen=True)
class PayloadLayout:
    """Where each weight of a payload lies.

    Attributes:
        header: length field and JSON, the first bytes of the file; a multiple of ALIGNMENT long.
        offsets: of each weight, in bytes from the end of the header; multiples of ALIGNMENT.
        data_bytes: size of all that follows the header.
    """

    header: bytes
    offsets: Mapping[str, int]
    data_bytes: int

    @property
    def total_bytes(self) -> int:
        """Size of the whole payload."""
        return len(self.header) + self.data_bytes


def plan_payload(specs: Mapping[str, WeightSpec]) -> PayloadLayout:
    """Lays out weights in the order of `specs`. Equal arguments give equal bytes.

    Code generation puts the header and the offsets into the library, which refuses a payload whose
    header differs.
    """
    entries: dict[str, Any] = {}
    offsets: dict[str, int] = {}
    end = 0

    def put(name: str, dtype: str, shape: Iterable[int], size: int) -> None:
        nonlocal end
        entries[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [end, end + size]}
        end += size

    for name, spec in specs.items():
        if name.startswith(PADDING) or name == "__metadata__":
            raise WeightsError(f"a weight cannot be named '{name}': the name is reserved")
        if gap := -end % ALIGNMENT:
            put(f"{PADDING}{len(entries)}", "U8", [gap], gap)
        offsets[name] = end
        put(name, DTYPES[spec.dtype].safetensors, spec.shape, spec.bytes)
    put(f"{PADDING}crc32", "U8", [CRC_BYTES], CRC_BYTES)

    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-(len(text) + _LENGTH_BYTES) % ALIGNMENT)
    header = len(text).to_bytes(_LENGTH_BYTES, "little") + text
    return PayloadLayout(header, offsets, end)


def write_payload(file: BinaryIO, weights: Mapping[str, WeightArray]) -> int:
    """Writes weights in the order of the mapping, one at a time; returns the crc32 at the end.

    Raises:
        OSError: as the file does.
    """
    layout = plan_payload({name: weight.spec for name, weight in weights.items()})
    file.write(layout.header)
    crc = zlib.crc32(layout.header)
    position = 0
    for name, weight in weights.items():
        padding = bytes(layout.offsets[name] - position)
        array = np.ascontiguousarray(weight.data)
        # A memoryview of an empty array refuses the cast.
        data = array.data.cast("B") if array.size else b""
        for part in (padding, data):
            file.write(part)
            crc = zlib.crc32(part, crc)
        position = layout.offsets[name] + array.nbytes
    file.write(crc.to_bytes(CRC_BYTES, "little"))
    return crc


def read_payload(path: Path, *, offset: int = 0, size: int | None = None) -> dict[str, WeightArray]:
    """Maps a payload: the arrays are read-only views of the file, in the order of their offsets.

    Args:
        path: a safetensors file, or a library with a payload at `offset`.
        size: bytes of the payload; None means up to the end of the file.

    Raises:
        WeightsError: the file is absent or is not a well-formed safetensors file.
    """
    try:
        mapped = np.memmap(path, dtype=np.uint8, mode="r")
    except (OSError, ValueError) as error:
        raise WeightsError(f"cannot read weights from '{path}': {error}") from error
    payload = mapped[offset : None if size is None else offset + size]
    try:
        length = int.from_bytes(payload[:_LENGTH_BYTES].tobytes(), "little")
        data = payload[_LENGTH_BYTES + length :]
        header = json.loads(payload[_LENGTH_BYTES : _LENGTH_BYTES + length].tobytes())
        return dict(_views(cast(dict[str, Any], header), data))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise WeightsError(f"'{path}' is not a well-formed safetensors file: {error}") from error


def _views(
    header: Mapping[str, Any], data: np.ndarray[Any, np.dtype[np.uint8]]
) -> Iterable[tuple[str, WeightArray]]:
    named = [(name, entry) for name, entry in header.items() if name != "__metadata__"]
    for name, entry in sorted(named, key=lambda item: item[1]["data_offsets"][0]):
        first, last = entry["data_offsets"]
        if name.startswith(PADDING):
            continue
        if not 0 <= first <= last <= len(data):
            raise ValueError(f"'{name}' ends beyond the file: it is truncated")
        dtype, shape = BY_SAFETENSORS[entry["dtype"]], tuple(entry["shape"])
        if WeightSpec(dtype.name, shape).bytes != last - first:
            raise ValueError(f"the shape of '{name}' does not fit its bytes")
        array: Array = np.ndarray(shape, dtype.storage, buffer=data, offset=first)
        yield name, WeightArray(array, dtype.name)
