"""Renders model.cc: the tables of one library and the C ABI over them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Space = Literal["input", "output", "weight", "workspace"]


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
        symbol: of the kernel; the functions are `extern "C" int <symbol>_<isa>(const vitc::Call&)`.
        args: the op's inputs, then its outputs.
        ir: the IR line that the step implements.
        scratch_bytes: scratch memory shared by the threads of a call.
        scratch_bytes_per_thread: scratch memory that each thread needs on top of it.
    """

    name: str
    symbol: str
    args: tuple[ArgRef, ...]
    ir: str = ""
    scratch_bytes: int = 0
    scratch_bytes_per_thread: int = 0


@dataclass(frozen=True)
class ModelSource:
    """The parameters of model.cc.jinja.

    Attributes:
        name: of the model, for messages and comments.
        isas: instruction sets that each kernel was compiled for, from the least to the most demanding.
        payload_header: PayloadLayout.header; the library refuses a payload that starts otherwise.
        payload_data_bytes: PayloadLayout.data_bytes.
        workspace_bytes: for the maximum batch.
        manifest: JSON text.
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


def render_model(source: ModelSource) -> str:
    """The text of model.cc."""
    raise NotImplementedError(source.name)
