"""FX graph of an ExportedProgram to the IR."""

from __future__ import annotations

import operator
import re
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, cast

from vitc.errors import GraphError, UnsupportedModelError, UnsupportedOp
from vitc.frontend.aliases import Aliases
from vitc.frontend.known import Known
from vitc.frontend.provenance import Names, location, module_path, source_line
from vitc.frontend.signature import Signature, tensor_type, to_dim, to_numpy
from vitc.ir.builder import Value
from vitc.ir.graph import Graph
from vitc.ir.types import TensorType
from vitc.ir.verify import verify
from vitc.ops.aten import IMPORTERS, Context, Filled, Unsupported

if TYPE_CHECKING:
    from torch.export import ExportedProgram
    from torch.fx import Node

# Checks that the exported program makes of its own shapes and types; the IR's types hold them.
_ASSERTIONS = (
    "_assert_tensor_metadata",
    "_assert_scalar",
    "_assert_async",
    "sym_constrain_range",
    "sym_constrain_range_for_size",
)


def import_program(program: ExportedProgram, name: str) -> Graph:
    """The program as a graph of IR ops in normal form, verified, without dead nodes.

    Inputs and outputs are those of the program; weights have their state-dict names.
    Raises UnsupportedModelError that lists every call vitc has no importer for.
    """
    import_module("vitc.ops.importers")  # fills IMPORTERS
    graph = _Importer(program, re.sub(r"\W", "_", name) or "model").run()
    verify(graph)
    return graph


class _Importer:
    def __init__(self, program: ExportedProgram, name: str) -> None:
        self.name = name
        self.signature = Signature.of(program)
        self.nodes: list[Node] = list(program.graph.nodes)
        self.calls = [node for node in self.nodes if node.op == "call_function"]
        self.names = Names(self.calls)
        self.aliases = Aliases(self.nodes)
        ports = (*self.signature.inputs, *self.signature.weights)
        self.builder = Context(port.name for port in ports)
        self.known = Known()
        self.values: dict[Node, Any] = {}
        self.refused: dict[UnsupportedOp, None] = {}

    def run(self) -> Graph:
        self._placeholders()
        for node in self.nodes:
            if node.op == "call_function":
                self._call(node)
            elif node.op == "get_attr":
                self._refuse(node, f"{node.op} {node.target}")
        outputs = self._outputs()
        if self.refused:
            raise UnsupportedModelError(
                f"'{self.name}' uses operations that vitc cannot compile:",
                ops=tuple(self.refused),
                hint="docs/architecture.md says how to add an operation",
            )
        graph = Graph(
            self.name,
            self.signature.inputs,
            self.signature.weights,
            tuple(self.builder.nodes),
            outputs,
        )
        return graph.without_dead_nodes()

    def _placeholders(self) -> None:
        by_name = {node.name: node for node in self.nodes if node.op == "placeholder"}
        for placeholder, port in self.signature.ports.items():
            self.values[by_name[placeholder]] = Value(port.name, port.type)
        for placeholder, (name, array) in self.signature.literals.items():
            self.builder.hint = name
            self.values[by_name[placeholder]] = self.builder.literal(array)
            self.known.place(by_name[placeholder], array)

    def _call(self, node: Node) -> None:
        if node.target is operator.getitem:
            self.known.run(node, self.values)
            whole: Any = node.args[0]
            self.values[node] = self.values[whole][node.args[1]]
            return
        value = node.meta.get("val")
        target = str(node.target).removeprefix("aten.")
        if _is_number(value):
            self._shape_arithmetic(node, value)
        elif target.split(".")[0] not in _ASSERTIONS:
            self._import(node, target)

    def _shape_arithmetic(self, node: Node, value: Any) -> None:
        """sym_size and what is computed of it: torch has worked out the result already."""
        if type(value) in (int, float, bool):
            self.values[node] = value
            return
        try:
            self.values[node] = None if "Bool" in type(value).__name__ else to_dim(value)
        except ValueError as error:
            self._refuse(node, f"{node.target}: {error}")

    def _import(self, node: Node, target: str) -> None:
        b, results = self.builder, _result_types(node)
        b.loc, b.hint, b.results = location(node), self.names.hint(node), results
        made: Any = None
        try:
            self.aliases.check(node)
            tensor = self.known.run(node, self.values)
            importer = IMPORTERS.get(target)
            if importer is not None:
                args, kwargs = self._resolve(node.args), self._resolve(node.kwargs)
                self._check_fills(args, target)
                made = importer(b, *args, **kwargs)
            elif _is_tensor(tensor):
                made = b.literal(to_numpy(tensor))
            else:
                raise Unsupported("")
            self._check(node, made, results)
        except (ValueError, TypeError, KeyError) as error:
            self._refuse(node, f"{target}: {error}" if str(error) else target)
            made = self._stand_ins(node, results)
        self.values[node] = made
        mutated = self.aliases.mutated(node)
        if mutated is not None:  # later readers of the argument see what was written to it
            self.values[mutated] = made

    def _resolve(self, arguments: Any) -> Any:
        """Arguments with values and dimensions in the place of nodes."""
        if isinstance(arguments, Mapping):
            items = cast("Mapping[str, Any]", arguments).items()
            return {key: self._resolve(value) for key, value in items}
        if isinstance(arguments, tuple | list):
            return [self._resolve(value) for value in cast("Sequence[Any]", arguments)]
        if not hasattr(arguments, "op") or arguments not in self.values:
            return arguments
        value = self.values[arguments]
        if value is None and _is_tensor(arguments.meta.get("val")):
            raise Unsupported(f"reads a result of {arguments.args[0]} that vitc does not compute")
        return value

    def _check_fills(self, arguments: Sequence[Any], target: str) -> None:
        filled = next((value for value in arguments if isinstance(value, Filled)), None)
        if filled is not None and target != "max_pool2d.default":
            raise Unsupported(f"reads a tensor padded with {filled.fill}")

    def _check(self, node: Node, made: Any, results: tuple[TensorType, ...]) -> None:
        """An importer's result must have the type that torch found. Raises GraphError."""
        values: Sequence[Any] = [made] if isinstance(made, Value) else made
        if isinstance(made, Filled):
            return
        for value, expected in zip(values, results, strict=True):
            if value is not None and value.type != expected:
                raise GraphError(
                    f"the importer of {node.target} made {value.type}, torch {expected}, "
                    f"at {location(node)}"
                )

    def _stand_ins(self, node: Node, results: tuple[TensorType, ...]) -> Any:
        """Values in the place of a refused call's, so that later calls are looked at too."""
        values = [Value(self.builder.fresh(node.name), type_) for type_ in results]
        return values[0] if _is_tensor(node.meta.get("val")) and values else values

    def _refuse(self, node: Node, what: str) -> None:
        where = module_path(node) or "the model itself"
        self.refused[UnsupportedOp(what, where, source_line(node) or "source unknown")] = None

    def _outputs(self) -> tuple[str, ...]:
        returned = cast("Sequence[Any]", self.nodes[-1].args[0])
        names: list[str] = []
        for item in returned[self.signature.mutations :]:
            value = self.values.get(item) if hasattr(item, "op") else item
            if isinstance(value, Value):
                names.append(value.name)
            elif item is not None:
                raise UnsupportedModelError(
                    f"output {len(names)} of '{self.name}' is not a tensor",
                    hint="return tensors only, or wrap the model in a module that does",
                )
        return tuple(names)


def _is_tensor(value: Any) -> bool:
    return hasattr(value, "shape") and hasattr(value, "dtype")


def _is_number(value: Any) -> bool:
    return value is not None and not _is_tensor(value) and not isinstance(value, tuple | list)


def _result_types(node: Node) -> tuple[TensorType, ...]:
    """Types of the call's tensors by torch's account; others are left out."""
    value = node.meta.get("val")
    single = not isinstance(value, tuple | list)
    values = [value] if single else cast("Sequence[Any]", value)
    return tuple(tensor_type(item) for item in values if _is_tensor(item))
