"""Selection: which kernel implements each node, and where each index map goes.

A `move` is no kernel: its readers load through the map, or its producer stores through it. Only
where neither can, the moved tensor is materialised by a copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from vitc.codegen.kernel import Kernel, KernelCall, Operand, Packing, Site, Target
from vitc.errors import UnsupportedModelError, UnsupportedOp
from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ir.text import print_node
from vitc.ops import Move, Pointwise


@dataclass(frozen=True)
class Selection:
    """The calls in order, and the recipe whose outputs are the constants that they read."""

    graph: Graph
    calls: tuple[KernelCall, ...]
    recipes: Graph

    def maps(self) -> list[str]:
        """Where each index map went, one line for the operands that are views of one kind."""
        lines: list[str] = []
        for call in self.calls:
            where = f"{call.kernel.name} %{call.node.output}"
            loads: dict[tuple[str, str], list[str]] = {}
            for index, operand in enumerate(call.inputs):
                if not operand.is_dense:
                    loads.setdefault((operand.value, _kinds(operand)), []).append(str(index))
            for (value, kinds), indices in loads.items():
                operands = f"operand{'s' * (len(indices) > 1)} {', '.join(indices)}"
                lines.append(f"{where} loads {operands} (%{value}) through {kinds}")
            lines.extend(
                f"{where} stores %{operand.value} through {_kinds(operand)}"
                for operand in call.outputs
                if not operand.is_dense
            )
        return lines


def _kinds(operand: Operand) -> str:
    """The views of the operand's map by name; the maps themselves are in the graph."""
    return ", ".join(type(view).__name__.lower() for view in operand.map.views)


def select(graph: Graph, target: Target) -> Selection:
    """Implements every node that depends on an input by a kernel of `target`.

    Raises UnsupportedModelError listing all nodes that no kernel takes, and for an input or output
    that is not [B, ...].
    """
    return _Selector(graph, target).run()


class _Selector:
    def __init__(self, graph: Graph, target: Target) -> None:
        self.graph = graph
        self.target = target
        self.calls: list[KernelCall] = []
        self.builder = Builder(graph.types)
        self.packed: dict[tuple[str, str], Operand] = {}
        # What a value is: a stored tensor seen through a map.
        self.seen: dict[str, Operand] = {
            port.name: Operand.dense(port.name, port.type) for port in graph.inputs
        }
        self.dense: set[str] = {port.name for port in graph.inputs}
        self.stored_moves: set[str] = set()

    def run(self) -> Selection:
        missing: list[UnsupportedOp] = []
        lost = set[str]()
        for node in self.graph.nodes:
            if node.output in self.graph.constants:
                continue
            if lost.intersection(node.inputs):
                lost.update(node.outputs)  # of a node that is listed already
                continue
            if isinstance(node.op, Move):
                if node.output not in self.stored_moves:
                    self._view(node)
                continue
            site = self._site(node)
            kernel, reasons = self._kernel(site)
            if kernel is None:
                lost.update(node.outputs)
                why = "; ".join(reasons) or f"target {self.target.name} has no kernel for it"
                line = print_node(node, self.graph)
                missing.append(
                    UnsupportedOp(node.op.name, node.loc or node.output, f"{why}: {line}")
                )
                continue
            self._call(kernel, site)
        if missing:
            raise UnsupportedModelError(
                f"target {self.target.name} cannot run {len(missing)} operations of "
                f"'{self.graph.name}':",
                ops=tuple(missing),
            )
        self._outputs()
        return Selection(self.graph, _directed(self.calls), self._recipes())

    def _site(self, node: Node) -> Site:
        types = self.graph.types
        return Site(
            node,
            tuple(types[name] for name in node.inputs),
            tuple(types[name] for name in node.outputs),
            tuple(name in self.graph.constants for name in node.inputs),
        )

    def _kernel(self, site: Site) -> tuple[Kernel | None, list[str]]:
        """The first kernel of the target that takes the site, and why others refused."""
        reasons: list[str] = []
        for kernel in self.target.kernels:
            if not isinstance(site.op, kernel.ops):
                continue
            operands = tuple(
                None if constant else self.seen[name]
                for name, constant in zip(site.node.inputs, site.constant, strict=True)
            )
            reason = kernel.refuses(site) or kernel.declines(site, operands)
            if reason is None:
                return kernel, reasons
            reasons.append(f"{kernel.name}: {reason}")
        return None, reasons

    def _view(self, node: Node) -> None:
        assert isinstance(node.op, Move)
        name = node.inputs[0]
        source = self.seen[name] if name in self.seen else self._constant(name, None)
        self.seen[node.output] = replace(source, map=source.map.compose(node.op.map))

    def _call(self, kernel: Kernel, site: Site) -> None:
        inputs = tuple(
            self._constant(site.node.inputs[index], kernel.packing(site, index))
            if site.constant[index]
            else self._readable(kernel, site, index)
            for index in range(len(site.inputs))
        )
        outputs = [
            Operand.dense(name, type_)
            for name, type_ in zip(site.node.outputs, site.results, strict=True)
        ]
        outputs[0] = self._store(kernel, site, outputs[0])
        self.calls.append(KernelCall(kernel, site, inputs, tuple(outputs)))
        for name, operand in zip(site.node.outputs, outputs, strict=True):
            self.seen[name] = operand
            self.dense.add(operand.value)

    def _store(self, kernel: Kernel, site: Site, plain: Operand) -> Operand:
        """The first result as it is stored: through the move that is its only reader, if it can."""
        name = site.node.output
        users = self.graph.users.get(name, ())
        if name in self.graph.outputs or len(users) != 1 or not isinstance(users[0].op, Move):
            return plain
        move = users[0]
        assert isinstance(move.op, Move)
        inverse = move.op.map.inverse()
        if inverse is None or move.op.map.is_identity:
            return plain
        stored = Operand(move.output, self.graph.types[move.output], inverse)
        if not kernel.writes(site, stored):
            return plain
        self.stored_moves.add(move.output)
        self.seen[move.output] = Operand.dense(move.output, stored.type)
        return stored

    def _readable(self, kernel: Kernel, site: Site, index: int) -> Operand:
        name = site.node.inputs[index]
        operand = self.seen[name]
        if operand.is_dense or kernel.reads(site, index, operand):
            return operand
        return self._materialise(name)

    def _materialise(self, name: str) -> Operand:
        """Stores the viewed value `name` densely by a copy of its own."""
        if name in self.dense:
            return Operand.dense(name, self.graph.types[name])
        node = self.graph.producers[name]
        source, type_ = self.seen[name], self.graph.types[name]
        copy = Node(Pointwise(), (source.value,), (name,), node.loc)
        copied = Site(copy, (type_,), (type_,), (False,))
        kernel, reasons = self._kernel(copied)
        if kernel is None or not kernel.reads(copied, 0, source):
            why = "; ".join(reasons) or "no kernel can copy through this map"
            op = UnsupportedOp("move", node.loc or name, f"{why}: {print_node(node, self.graph)}")
            raise UnsupportedModelError(f"target {self.target.name} cannot run:", ops=(op,))
        self.calls.append(KernelCall(kernel, copied, (source,), (Operand.dense(name, type_),)))
        self.dense.add(name)
        self.seen[name] = Operand.dense(name, type_)
        return self.seen[name]

    def _constant(self, name: str, packing: Packing | None) -> Operand:
        """A constant in the form that its reader wants."""
        key = (name, packing.name if packing else "")
        if key not in self.packed:
            value = Value(name, self.graph.types[name])
            if packing is not None:
                self.builder.hint = f"{name}.{packing.name}"
                value = packing.build(self.builder, value)
            self.packed[key] = Operand.dense(value.name, value.type)
        return self.packed[key]

    def _outputs(self) -> None:
        """Every graph output must be a dense tensor that a call writes."""
        written = {operand.value for call in self.calls for operand in call.outputs}
        for name in self.graph.outputs:
            if name in self.graph.constants:
                op = UnsupportedOp("return", name, "the output does not depend on the input")
                raise UnsupportedModelError("the model returns a constant:", ops=(op,))
            if name not in written:
                self.dense.discard(name)  # an input or a view of something
                self._materialise(name)

    def _recipes(self) -> Graph:
        constants = [n for n in self.graph.nodes if n.output in self.graph.constants]
        outputs = tuple(operand.value for operand in self.packed.values())
        graph = Graph(
            f"{self.graph.name}_recipes",
            (),
            self.graph.weights,
            (*constants, *self.builder.nodes),
            tuple(dict.fromkeys(outputs)),
        )
        return graph.without_dead_nodes()


def _directed(calls: Sequence[KernelCall]) -> tuple[KernelCall, ...]:
    """The calls, each beginning where the one before it has ended as far as kernels can go
    backwards: what was written last is still in the cache. (They alternate, so a chain of calls
    that returns to itself after an odd number of them, as a transformer block does, has one that
    does not.)
    """
    forwards = {
        operand.value for call in calls if not call.kernel.reversible for operand in call.inputs
    }
    backwards: dict[str, bool] = {}
    directed: list[KernelCall] = []
    for call in calls:
        if call.kernel.reversible:
            read_forwards = call.outputs[0].value in forwards
            call = replace(
                call, backwards=read_forwards or not backwards.get(call.inputs[0].value, True)
            )
        backwards.update((operand.value, call.backwards) for operand in call.outputs)
        directed.append(call)
    return tuple(directed)
