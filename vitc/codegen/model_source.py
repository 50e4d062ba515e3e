"""Renders model.cc: the tables of one library and the C ABI over them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from vitc.runtime.dtypes import DTYPES

Space = Literal["input", "output", "weight", "workspace"]
Device = Literal["cpu", "cuda", "emulated"]


@dataclass(frozen=True)
class PortParam:
    """An input or output of the library.

    Attributes:
        dtype: a key of vitc.runtime.dtypes.DTYPES.
        shape: of one call; shape[0] is the maximum batch.
        dims: what error messages call each dimension; () picks the usual names of its rank.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    dims: tuple[str, ...] = ()


@dataclass(frozen=True)
class WeightParam:
    """A final constant. offset and bytes as in PayloadLayout and WeightSpec."""

    name: str
    offset: int
    bytes: int


@dataclass(frozen=True)
class ArgRef:
    """Where a kernel finds an argument.

    Attributes:
        at: index of the input, output or weight; byte offset in the workspace.
    """

    space: Space
    at: int


@dataclass(frozen=True)
class StepParam:
    """One kernel call.

    Attributes:
        name: unique in the library; profiles and errors show it.
        symbol: of the kernel. Each of `isas` has `extern "C" int <symbol>_<isa>(const vitc::Call&)`
            and `extern "C" uint64_t <symbol>_scratch_<isa>(int threads)`.
        args: the op's inputs, then its outputs.
        ir: the IR line that the step implements.
        isas: the instruction sets that this kernel was compiled for; () means all of the library's.
    """

    name: str
    symbol: str
    args: tuple[ArgRef, ...]
    ir: str
    isas: tuple[str, ...] = ()


@dataclass(frozen=True)
class ModelSource:
    """The parameters of model.cc.jinja.

    Attributes:
        name: of the model, for the first comment.
        isas: instruction sets or GPU architectures (`sm_80`, `sm_90a`) that the library has code
            for, from the least to the most demanding. Code for an `sm_` architecture without a
            suffix includes its PTX.
        payload_header: PayloadLayout.header; the library refuses a payload that starts otherwise.
        payload_data_bytes: PayloadLayout.data_bytes.
        workspace_bytes: for the maximum batch.
        manifest: JSON text.
        device: what runs the kernels: host/device_<device>.h. "emulated" runs GPU kernels on the
            CPU; it needs -DVITC_EMULATE, as its kernels do.
    """

    name: str
    isas: tuple[str, ...]
    inputs: tuple[PortParam, ...]
    outputs: tuple[PortParam, ...]
    weights: tuple[WeightParam, ...]
    payload_header: bytes
    payload_data_bytes: int
    workspace_bytes: int
    steps: tuple[StepParam, ...]
    manifest: str
    device: Device = "cpu"

    def __post_init__(self) -> None:
        for step in self.steps:
            isas = step.isas or self.isas
            if isas[0] != self.isas[0] or not set(isas) <= set(self.isas):
                raise ValueError(f"step '{step.name}' has code for {isas}, the library {self.isas}")


def render_model(source: ModelSource) -> str:
    """The text of model.cc."""
    return _TEMPLATES.get_template("model.cc.jinja").render(
        model=source,
        kernels={step.symbol: step.isas or source.isas for step in source.steps},
        fallbacks=partial(_fallbacks, source.isas),
        dim_names=_dim_names,
        macros={dtype.name: dtype.macro for dtype in DTYPES.values()},
        spaces=_SPACES,
    )


_SPACES = {
    "input": "Space::kInput",
    "output": "Space::kOutput",
    "weight": "Space::kWeight",
    "workspace": "Space::kWorkspace",
}
_DIMS = {
    2: ("batch", "features"),
    3: ("batch", "tokens", "features"),
    4: ("batch", "channels", "height", "width"),
}


def _dim_names(port: PortParam) -> tuple[str, ...]:
    rank = len(port.shape)
    return port.dims or _DIMS.get(rank, ("batch", *(f"axis {i}" for i in range(1, rank))))


def _fallbacks(library: tuple[str, ...], kernel: tuple[str, ...]) -> list[str]:
    """For each of the library's instruction sets the best of the kernel's that it implies."""
    chosen: list[str] = []
    for isa in library:
        chosen.append(isa if isa in kernel else chosen[-1])
    return chosen


def _c_string(value: str | bytes) -> str:
    """A C string literal of any bytes, broken into lines that an editor can show."""
    data = value.encode() if isinstance(value, str) else value
    pieces = [_escape(byte) for byte in data]
    width = 0
    lines: list[list[str]] = [[]]
    for piece in pieces:
        if width + len(piece) > _LITERAL_WIDTH:
            lines.append([])
            width = 0
        lines[-1].append(piece)
        width += len(piece)
    return "\n    ".join(f'"{"".join(line)}"' for line in lines)


_LITERAL_WIDTH = 92


def _escape(byte: int) -> str:
    char = chr(byte)
    if char in '"\\?':  # '?' because of trigraphs
        return "\\" + char
    # Octal escapes end after three digits, hexadecimal ones would swallow what follows.
    return char if 32 <= byte < 127 else f"\\{byte:03o}"


def _comment(text: str) -> str:
    """Text that stays in one // comment: a line break would end it, a last backslash extend it."""
    return " ".join(text.split()).rstrip("\\ ")


_TEMPLATES = Environment(
    loader=FileSystemLoader(Path(__file__).parent.parent / "templates"),
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_FILTERS: dict[str, Callable[[str], str]] = {"c_string": _c_string, "comment": _comment}
_TEMPLATES.filters.update(_FILTERS)  # pyright: ignore[reportUnknownMemberType]
