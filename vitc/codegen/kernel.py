"""What a kernel declares, and a call of one: the vocabulary between selection and the targets."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import ClassVar, Literal

from vitc.codegen.records import Choice
from vitc.codegen.sources import Source
from vitc.codegen.toolchain import Language
from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Node
from vitc.ir.index_map import IndexMap
from vitc.ir.op import Op
from vitc.ir.types import DType, TensorType


@dataclass(frozen=True)
class Operand:
    """A stored tensor as an op sees it.

    value, type: name and type of what lies in memory, dense. map: from there to what the op reads
    or writes; element i of the op's tensor is element map(i) of the stored one.
    """

    value: str
    type: TensorType
    map: IndexMap

    @staticmethod
    def dense(value: str, type_: TensorType) -> Operand:
        return Operand(value, type_, IndexMap(type_.shape))

    @property
    def is_dense(self) -> bool:
        return self.map.is_identity


@dataclass(frozen=True)
class Site:
    """A node with the types that its op sees; `constant` says which operands are constants."""

    node: Node
    inputs: tuple[TensorType, ...]
    results: tuple[TensorType, ...]
    constant: tuple[bool, ...]

    @property
    def op(self) -> Op:
        return self.node.op


@dataclass(frozen=True)
class Packing:
    """How a kernel wants a constant: `build` adds recipe nodes; equal names mean equal packings."""

    name: str
    build: Callable[[Builder, Value], Value]


@dataclass(frozen=True)
class KernelCall:
    """One kernel applied at one site; operands in the order of the node's. backwards: whether it
    works from the last rows to the first, where its kernel can.
    """

    kernel: Kernel
    site: Site
    inputs: tuple[Operand, ...]
    outputs: tuple[Operand, ...]
    backwards: bool = False

    @property
    def node(self) -> Node:
        return self.site.node


@dataclass(frozen=True)
class Rendered:
    """A kernel's text, with vitc.codegen.render.KERNEL for its name so that equal ones become one.

    config: what was chosen, for people.
    """

    body: str
    config: str


class Kernel(ABC):
    """A kernel family of a target: what it implements and under which constraints."""

    name: ClassVar[str]
    ops: ClassVar[tuple[type[Op], ...]]
    reversible: ClassVar[bool] = False  # whether it heeds KernelCall.backwards

    def refuses(self, site: Site) -> str | None:
        """Why the kernel cannot implement this site, or None when it can."""
        return None

    def declines(self, site: Site, operands: tuple[Operand | None, ...]) -> str | None:
        """Why another kernel should take the site, given how its inputs lie in memory; None of an
        operand is a constant. Unlike a refusal this may depend on index maps.
        """
        return None

    @abstractmethod
    def reads(self, site: Site, index: int, operand: Operand) -> bool:
        """Whether the kernel can read input `index` through the operand's map."""

    def writes(self, site: Site, operand: Operand) -> bool:
        """Whether the kernel can store its first result through the operand's map."""
        return False

    def packing(self, site: Site, index: int) -> Packing | None:
        """The form in which the kernel reads constant operand `index`; None leaves it as it is."""
        return None

    def in_place(self, call: KernelCall) -> tuple[int, ...]:
        """Inputs whose memory the first output may reuse when nobody reads them afterwards."""
        return ()

    def choice(self, call: KernelCall, batch: int) -> Choice | None:
        """What there is to choose at this call for `batch`, for a tuner; None where nothing is."""
        return None

    def render_choice(self, call: KernelCall, name: str) -> Rendered:
        """The kernel's text with the configuration of its choice called `name`, at all batches."""
        raise NotImplementedError(f"{self.name} has nothing to choose")

    @abstractmethod
    def render(self, call: KernelCall) -> Rendered:
        """The kernel's text for this call."""


class Target(ABC):
    """A kind of device: its kernels, dtypes and how its sources are built."""

    name: str
    isas: tuple[str, ...]
    dtypes: tuple[DType, ...]
    stats_width: int
    kernels: tuple[Kernel, ...]
    device: Literal["cpu", "cuda", "emulated"]  # the device class of vitc/host that runs it

    @property
    def languages(self) -> frozenset[Language]:
        """Languages that a compiler is needed for."""
        return frozenset(("c++", "cuda") if self.device == "cuda" else ("c++",))

    @abstractmethod
    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        """The kernel's text for each of `isas` that it is built for; the first is among them."""

    @abstractmethod
    def source(self, name: str, isa: str, text: str) -> Source:
        """The object file to build from a kernel's text for one instruction set."""

    @abstractmethod
    def model_source(self, text: str) -> Source:
        """The object file of the rendered model.cc."""

    @abstractmethod
    def io_dtype(self, dtype: DType) -> DType:
        """The default dtype of inputs and outputs for a compute dtype."""


class OtherTarget(Target):
    """Another target in all but what a subclass changes."""

    def __init__(self, target: Target) -> None:
        self._target = target
        self.name, self.isas, self.dtypes = target.name, target.isas, target.dtypes
        self.stats_width, self.kernels = target.stats_width, target.kernels
        self.device = target.device

    def render(self, call: KernelCall) -> Mapping[str, Rendered]:
        return self._target.render(call)

    def source(self, name: str, isa: str, text: str) -> Source:
        return self._target.source(name, isa, text)

    def model_source(self, text: str) -> Source:
        return self._target.model_source(text)

    def io_dtype(self, dtype: DType) -> DType:
        return self._target.io_dtype(dtype)
