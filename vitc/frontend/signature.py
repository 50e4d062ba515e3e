"""What an ExportedProgram takes and holds: its placeholders as ports and literals of a graph."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from vitc.errors import UnsupportedModelError
from vitc.ir.graph import Port
from vitc.ir.op import Array
from vitc.ir.types import Batch, Dim, DType, TensorType

if TYPE_CHECKING:
    from torch.export import ExportedProgram

_BATCH_HINT = (
    "hand vitc the nn.Module itself, or export it with a dynamic batch: "
    "dynamic_shapes=({0: torch.export.Dim('batch', min=1)},) and an example batch of 2 or more"
)


def to_dim(size: Any) -> Dim:
    """A dimension, from an int or a SymInt. Raises ValueError unless it is k or k * B."""
    if isinstance(size, int):
        return size
    factor, rest = size.node.expr.as_coeff_Mul()
    if rest == 1:
        return int(factor)
    if rest.is_Symbol and factor.is_Integer:
        return Batch(int(factor))
    raise ValueError(f"dimension {size.node.expr} is not a multiple of the batch")


def tensor_type(tensor: Any) -> TensorType:
    """The type of a (fake) tensor. Raises ValueError for shapes and dtypes that the IR lacks."""
    shape = tuple(to_dim(size) for size in tensor.shape)
    return TensorType(shape, DType.parse(str(tensor.dtype).removeprefix("torch.")))


def to_numpy(tensor: Any) -> Array:
    """The tensor's elements; on the CPU the array shares the tensor's memory."""
    return tensor.detach().cpu().numpy()


@dataclass(frozen=True)
class Signature:
    """The placeholders of a program, sorted by what they stand for.

    ports: placeholder name to the port, for inputs and weights alike.
    literals: placeholder name to (name, elements), for tensors that no state dict holds.
    mutations: how many leading outputs are updates of buffers rather than results.
    """

    inputs: tuple[Port, ...] = ()
    weights: tuple[Port, ...] = ()
    ports: Mapping[str, Port] = field(default_factory=dict[str, Port])
    literals: Mapping[str, tuple[str, Array]] = field(default_factory=dict[str, tuple[str, Array]])
    mutations: int = 0

    @staticmethod
    def of(program: ExportedProgram) -> Signature:
        """Sorts the program's placeholders. Raises UnsupportedModelError for what cannot be one."""
        from torch.export.graph_signature import InputKind, OutputKind, TensorArgument

        values = {node.name: node.meta.get("val") for node in program.graph.nodes}
        inputs: list[Port] = []
        weights: list[Port] = []
        ports: dict[str, Port] = {}
        literals: dict[str, tuple[str, Array]] = {}
        for spec in program.graph_signature.input_specs:
            if not isinstance(spec.arg, TensorArgument):
                continue  # None, numbers and strings are part of the program already
            name, value = spec.arg.name, values[spec.arg.name]
            if spec.kind is InputKind.USER_INPUT:
                ports[name] = Port(name, _input_type(name, value))
                inputs.append(ports[name])
            elif spec.target is None or spec.kind not in (
                InputKind.PARAMETER,
                InputKind.BUFFER,
                InputKind.CONSTANT_TENSOR,
            ):
                raise UnsupportedModelError(f"input '{name}' of the program is a {spec.kind.name}")
            elif spec.target in program.state_dict:
                ports[name] = Port(spec.target, _weight_type(spec.target, value))
                weights.append(ports[name])
            else:
                constant: Any = program.constants[spec.target]
                literals[name] = (spec.target, np.array(to_numpy(constant)))
        _one_batch(inputs)
        kinds = [spec.kind for spec in program.graph_signature.output_specs]
        results = kinds.count(OutputKind.USER_OUTPUT)
        return Signature(tuple(inputs), tuple(weights), ports, literals, len(kinds) - results)


def _input_type(name: str, value: Any) -> TensorType:
    try:
        type_ = tensor_type(value)
    except ValueError as error:
        raise UnsupportedModelError(f"input '{name}': {error}", hint=_BATCH_HINT) from error
    shown = f"input '{name}' is {type_}"
    if type_.rank == 0 or type_.shape[0] != Batch():
        raise UnsupportedModelError(f"{shown}: its first dimension is fixed", hint=_BATCH_HINT)
    if type_.dtype is not DType.FLOAT32:
        raise UnsupportedModelError(f"{shown}, not float32", hint="export the model in float32")
    return type_


def _weight_type(name: str, value: Any) -> TensorType:
    type_ = tensor_type(value)
    if type_.dtype.is_float and type_.dtype is not DType.FLOAT32:
        raise UnsupportedModelError(
            f"weight '{name}' is {type_.dtype.value}, not float32",
            hint="call model.float() first; vitc.compile(dtype=...) chooses what it computes in",
        )
    return type_


def _one_batch(inputs: list[Port]) -> None:
    """Refuses dynamic dimensions besides the batch."""
    if not inputs:
        raise UnsupportedModelError("the model takes no tensor")
    for port in inputs:
        if any(isinstance(dim, Batch) for dim in port.type.shape[1:]):
            raise UnsupportedModelError(
                f"input '{port.name}' is {port.type}: only the batch may be dynamic",
                hint=_BATCH_HINT,
            )


def batch_limit(program: ExportedProgram) -> int | None:
    """The largest batch that the program was exported for, None when there is no limit."""
    ranges: Any = getattr(program, "range_constraints")  # noqa: B009 - keys of unknown type
    limits = [bounds.upper for bounds in ranges.values()]
    finite = [int(limit) for limit in limits if limit.is_Integer]
    return min(finite, default=None)
