"""Storage types: activations and matrix weights in the compute type, all else in float32."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ir.types import DType, TensorType
from vitc.ops import Attention, Concat, Conv2d, Fused, Linear, MatMul, Pointwise
from vitc.passes.options import PassOptions


class _Assigner:
    """Rebuilds a graph with types; recipes stay as they are but for a last cast."""

    def __init__(self, graph: Graph, options: PassOptions) -> None:
        self.options = options
        inputs = tuple(
            replace(port, type=port.type.with_dtype(options.input_dtype))
            if port.type.dtype.is_float
            else port
            for port in graph.inputs
        )
        self.graph = replace(graph, inputs=inputs)
        self.constants = {name for name in graph.constants if not graph.types[name].batched}
        self.build = Builder(graph.types, numbered=True)
        self.types: dict[str, TensorType] = {port.name: port.type for port in inputs}
        self.types.update({name: graph.types[name] for name in self.constants})
        self.casts: dict[tuple[str, DType], str] = {}
        self.inner: dict[str, str] = {}  # outputs that are cast: what the rest of the graph reads

    def run(self) -> Graph:
        for node in self.graph.nodes:
            self.build.loc = node.loc
            if node.output in self.constants:
                self.build.nodes.append(node)
            else:
                self._node(node)
        outputs = tuple(self._output(name) for name in self.graph.outputs)
        return self.graph.with_nodes(self.build.nodes, outputs).without_dead_nodes()

    def _node(self, node: Node) -> None:
        op = node.op
        inputs = self._operands(node)
        operands = [self.types[name] for name in inputs]
        wanted = self._wanted(node)
        results = op.infer(*operands)
        if isinstance(op, Fused) and results[0].dtype is not wanted:
            op = replace(op, dtype=wanted)
            results = op.infer(*operands)
        names = node.outputs
        if node.output in self.graph.outputs and self._differs(results[0]):
            inner = self.build.fresh(node.output)  # the output keeps its name for its cast
            self.inner[node.output] = inner
            names = (inner, *names[1:])
        self.build.nodes.append(replace(node, op=op, inputs=tuple(inputs), outputs=names))
        self.types.update(zip(names, results, strict=True))
        if names[0] != node.output:
            cast = Pointwise(dtype=self.options.output_dtype)
            self.build.nodes.append(Node(cast, (names[0],), (node.output,), node.loc))
            self.types[node.output] = results[0].with_dtype(self.options.output_dtype)

    def _differs(self, type_: TensorType) -> bool:
        return type_.dtype.is_float and type_.dtype is not self.options.output_dtype

    def _wanted(self, node: Node) -> DType:
        """Outputs are stored as outputs where nothing else reads them."""
        read = bool(self.graph.users.get(node.output))
        is_output = node.output in self.graph.outputs
        return self.options.output_dtype if is_output and not read else self.options.dtype

    def _operands(self, node: Node) -> list[str]:
        matrices = _matrix_operands(node.op, len(node.inputs))
        return [
            self._cast(name, self.options.dtype if i in matrices else DType.FLOAT32)
            if name in self.constants
            else self.inner.get(name, name)
            for i, name in enumerate(node.inputs)
        ]

    def _cast(self, name: str, dtype: DType) -> str:
        type_ = self.types[name]
        if type_.dtype is dtype or not type_.dtype.is_float:
            return name
        if (name, dtype) not in self.casts:
            self.build.hint = name
            self.casts[name, dtype] = self._emit_cast(Value(name, type_), dtype)
        return self.casts[name, dtype]

    def _emit_cast(self, value: Value, dtype: DType) -> str:
        cast = self.build.emit(Pointwise(dtype=dtype), value)
        self.types[cast.name] = cast.type
        return cast.name

    def _output(self, name: str) -> str:
        """An input or a constant that is an output too is cast here."""
        type_ = self.types[name]
        if not self._differs(type_):
            return name
        self.build.hint = name
        return self._emit_cast(Value(name, type_), self.options.output_dtype)


def _matrix_operands(op: object, count: int) -> Sequence[int]:
    """Operands that are multiplied as matrices, or stored among activations."""
    if isinstance(op, Linear | Conv2d | MatMul):
        return (0, 1)
    if isinstance(op, Attention):
        return (0, 1, 2)
    if isinstance(op, Concat):
        return range(count)
    return (0,)


def assign_dtypes(graph: Graph, options: PassOptions) -> Graph:
    """Activations and matrix weights have the compute type; outputs theirs; the rest is float32."""
    return _Assigner(graph, options).run()
