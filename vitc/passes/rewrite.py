"""The rewrite driver: rules, what they may ask of the graph, and sweeps until nothing changes.

A rule is an equation: a function that looks at one node (and at what made its operands) and either
returns values that equal the node's results, built with `match.build`, or None. A sweep rebuilds
the graph from first to last node, so operands have been rewritten before their readers are seen;
questions about readers are answered from the graph as it was when the sweep began.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TypeVar

from vitc.errors import GraphError
from vitc.ir.builder import Builder, Value
from vitc.ir.graph import Graph, Node
from vitc.ir.op import Op
from vitc.passes.check import check_application

Replacement = Value | tuple[Value, ...] | None
OpT = TypeVar("OpT", bound=Op)
SWEEPS = 64  # a chain of n nodes collapses in one sweep; real graphs settle in less than ten


@dataclass(frozen=True)
class Rule:
    """A named equation. `apply(match, node)` returns what equals the node's results, or None."""

    name: str
    equation: str
    apply: Callable[[Match, Node], Replacement]


def rule(function: Callable[[Match, Node], Replacement]) -> Rule:
    """Decorator: a function becomes the rule of its name; its docstring is the equation."""
    return Rule(function.__name__, (function.__doc__ or "").split("\n")[0], function)


class Match:
    """What a rule sees: the rebuilt part of the graph before it, and the readers of the old one."""

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self.build = Builder(graph.types, numbered=True)
        self.types = dict(graph.types)
        self.producers: dict[str, Node] = {}
        self.renamed: dict[str, str] = {}  # replaced value -> the existing value that equals it
        self._origins: dict[str, list[str]] = {}
        self._constants = set(graph.constants)
        self._twins: dict[tuple[str, tuple[str, ...]], list[Node]] = {}

    def value(self, name: str) -> Value:
        return Value(name, self.types[name])

    def values(self, node: Node) -> tuple[Value, ...]:
        """The node's operands."""
        return tuple(self.value(name) for name in node.inputs)

    def producer(self, name: str, kind: type[OpT]) -> tuple[Node, OpT] | None:
        """The node that makes `name` and its op when that is of `kind`."""
        node = self.producers.get(name)
        return (node, node.op) if node is not None and isinstance(node.op, kind) else None

    def is_constant(self, name: str) -> bool:
        """Whether the value depends on no input (and not on the batch)."""
        return name in self._constants and not self.types[name].batched

    def is_output(self, name: str) -> bool:
        return any(old in self.graph.outputs for old in self._origins.get(name, [name]))

    def readers(self, name: str) -> tuple[Node, ...]:
        """The nodes that read the value as the sweep began, one entry a use."""
        users = self.graph.users
        return tuple(n for old in self._origins.get(name, [name]) for n in users.get(old, ()))

    def single_use(self, name: str) -> bool:
        """Whether exactly one operand of one node reads the value, and it is no graph output."""
        return (
            name in self.graph.types and len(self.readers(name)) == 1 and not self.is_output(name)
        )

    def twin(self, node: Node) -> Node | None:
        """An earlier node with the same op on the same operands."""
        same = self._twins.get((node.op.name, node.inputs), ())
        return next((n for n in same if n.op == node.op), None)

    def current(self, name: str) -> str:
        """What a value of the old graph is called by now."""
        return self.renamed.get(name, name)

    def keep(self, node: Node) -> None:
        """Records a node of the rebuilt graph."""
        for name in node.outputs:
            self.producers[name] = node
        if all(name in self._constants for name in node.inputs):
            self._constants.update(node.outputs)
        self._twins.setdefault((node.op.name, node.inputs), []).append(node)


def rewrite(graph: Graph, rules: Sequence[Rule], *, check: bool = False) -> Graph:
    """The graph after all rules, applied until none matches.

    check: every application is interpreted on random arrays, both sides, and compared.
    Raises GraphError naming the rules when they never settle, or the rule that is not exact.
    """
    applied = set[str]()
    for _ in range(SWEEPS):
        graph, applied = _sweep(graph, rules, check)
        if not applied:
            return graph
    raise GraphError(
        f"rules still apply after {SWEEPS} sweeps: {', '.join(sorted(applied))}",
        hint="two of them may undo each other; disable one by name to find out which",
    )


def _sweep(graph: Graph, rules: Sequence[Rule], check: bool) -> tuple[Graph, set[str]]:
    match, applied = Match(graph), set[str]()
    for old in graph.nodes:
        inputs = tuple(match.current(name) for name in old.inputs)
        node = old if inputs == old.inputs else replace(old, inputs=inputs)
        if not any(_try(rule, match, node, check, applied) for rule in rules):
            match.build.nodes.append(node)
            match.keep(node)
    if not applied:
        return graph, applied
    outputs = tuple(match.current(name) for name in graph.outputs)
    result = graph.with_nodes(match.build.nodes, outputs).without_dead_nodes()
    return _restore_output_names(result, graph.outputs), applied


def _try(rule: Rule, match: Match, node: Node, check: bool, applied: set[str]) -> bool:
    """Applies the rule to the node if it matches, and records what came of it."""
    build, start = match.build, len(match.build.nodes)
    build.loc, build.hint = node.loc, node.output
    found = rule.apply(match, node)
    if found is None:
        del build.nodes[start:]
        return False
    results = found if isinstance(found, tuple) else (found,)
    added = build.nodes[start:]
    if not added and match.is_output(node.output) and not _can_be_output(match, results):
        return False
    match.types.update({name: build.types[name] for made in added for name in made.outputs})
    for name, result in zip(node.outputs, results, strict=True):
        if match.types[name] != result.type:
            raise GraphError(
                f"rule '{rule.name}' replaced %{name}: {match.types[name]} by {result.type}"
            )
    if check:
        check_application(rule.name, match, node, added, tuple(r.name for r in results))
    _name_results(match, node, results, start)
    for made in build.nodes[start:]:
        match.keep(made)
    applied.add(rule.name)
    return True


def _can_be_output(match: Match, results: Sequence[Value]) -> bool:
    """Each graph output is made by a node of its own."""
    return all(r.name in match.producers and not match.is_output(r.name) for r in results)


def _name_results(match: Match, node: Node, results: Sequence[Value], start: int) -> None:
    """Gives new nodes the names of the results they replace; notes results that existed before."""
    names: dict[str, str] = {}
    made = {name for new in match.build.nodes[start:] for name in new.outputs}
    for old, result in zip(node.outputs, results, strict=True):
        if result.name in made and result.name not in names:
            names[result.name] = old
        else:
            match.renamed[old] = names.get(result.name, result.name)
            origins = match._origins  # pyright: ignore[reportPrivateUsage]
            origins.setdefault(result.name, [result.name]).extend(origins.pop(old, [old]))
    match.build.nodes[start:] = [_renamed(new, names) for new in match.build.nodes[start:]]


def _renamed(node: Node, names: dict[str, str]) -> Node:
    inputs = tuple(names.get(name, name) for name in node.inputs)
    return replace(node, inputs=inputs, outputs=tuple(names.get(n, n) for n in node.outputs))


def _restore_output_names(graph: Graph, wanted: tuple[str, ...]) -> Graph:
    """Calls each graph output what it was called before, where a node makes it."""
    names = {
        now: old
        for now, old in zip(graph.outputs, wanted, strict=True)
        if now != old and now in graph.producers and now not in wanted and old not in graph.types
    }
    if not names:
        return graph
    outputs = tuple(names.get(name, name) for name in graph.outputs)
    return graph.with_nodes([_renamed(node, names) for node in graph.nodes], outputs)
