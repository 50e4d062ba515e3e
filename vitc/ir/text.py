"""IR text: `print_graph` and `parse_graph`, with parse_graph(print_graph(g)) == g.

graph tiny(%x: f32[B,4]) {
  weight %w: f32[8,4]
  weight %b: f32[8]
  %y = linear(%x, %w, %b) {steps=[add($2), gelu]} : f32[B,8] @ head.fc
  return %y
}
"""

from __future__ import annotations

import dataclasses
import json
import re
from dataclasses import dataclass
from typing import Any, cast

from vitc.errors import GraphError
from vitc.ir.graph import Graph, Node, Port
from vitc.ir.index_map import VIEWS, IndexMap
from vitc.ir.op import OPS, Op, TypeMismatch
from vitc.ir.types import Batch, DType, TensorType, parse_dim
from vitc.ops.fused import STEP_ARITY, Step

_VIEW_NAMES = {view.__name__.lower(): view for view in VIEWS}
_DTYPE_NAMES = {dtype.short: dtype for dtype in DType}
_TOKEN = re.compile(
    r"""\s*(?:(?P<value>%[\w.\-/]+) | (?P<string>"(?:[^"\\]|\\.)*") | (?P<operand>\$\d+)
    | (?P<batch>\d*B\b) | (?P<number>-?(?:inf\b|nan\b|\d+(?:\.\d+)?(?:e[+-]?\d+)?))
    | (?P<name>[A-Za-z_]\w*) | (?P<sign>->|[(){}\[\],=:]))""",
    re.VERBOSE,
)


def print_graph(graph: Graph) -> str:
    """The graph as text, one line a node."""
    inputs = ", ".join(_print_port(port) for port in graph.inputs)
    lines = [f"graph {graph.name}({inputs}) {{"]
    lines += [f"  weight {_print_port(port)}" for port in graph.weights]
    lines += [f"  {print_node(node, graph)}" for node in graph.nodes]
    lines += [f"  return {', '.join(f'%{name}' for name in graph.outputs)}", "}", ""]
    return "\n".join(lines)


def print_node(node: Node, graph: Graph) -> str:
    """The node's line, with its result types and where it came from."""
    types = ", ".join(str(graph.types[name]) for name in node.outputs)
    loc = f" @ {node.loc}" if node.loc else ""
    return f"{_print_call(node)} : {types}{loc}"


def _print_call(node: Node) -> str:
    outputs = ", ".join(f"%{name}" for name in node.outputs)
    inputs = ", ".join(f"%{name}" for name in node.inputs)
    return f"{outputs} = {node.op.name}({inputs}){print_attributes(node.op)}"


def print_attributes(op: Op) -> str:
    """The op's attributes that differ from their defaults: " {eps=1e-06}" or ""."""
    shown = [
        f"{field.name}={_print_value(getattr(op, field.name))}"
        for field in dataclasses.fields(op)
        if getattr(op, field.name) != field.default
    ]
    return f" {{{', '.join(shown)}}}" if shown else ""


def _print_port(port: Port) -> str:
    return f"%{port.name}: {port.type}"


def _print_value(value: Any) -> str:
    if value is None or isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return json.dumps(value)
    if isinstance(value, DType):
        return value.short
    if isinstance(value, tuple):
        return f"[{', '.join(map(_print_value, cast(tuple[Any, ...], value)))}]"
    if isinstance(value, IndexMap):
        views = "".join(f", {_print_view(view)}" for view in value.views)
        return f"map({_print_value(value.shape)}{views})"
    if isinstance(value, int | float | Batch | Step):
        return str(value)
    raise TypeError(f"attribute value {value!r} has no text form")


def _print_view(view: Any) -> str:
    fields = [getattr(view, field.name) for field in dataclasses.fields(view)]
    return f"{type(view).__name__.lower()}({', '.join(_print_value(field) for field in fields)})"


def parse_graph(text: str) -> Graph:
    """The graph that `text` describes. Raises GraphError naming the line."""
    parser = _GraphParser()
    for number, line in enumerate(text.splitlines(), 1):
        stripped = line.strip()
        if not stripped or stripped.startswith("//"):
            continue
        try:
            parser.line(stripped)
        except (ValueError, TypeMismatch, KeyError, TypeError, IndexError) as error:
            raise GraphError(f"line {number}: {error}: {stripped[:120]}") from error
    if parser.result is None:
        raise GraphError("the text ends before the graph's closing '}'")
    return parser.result


@dataclass
class _GraphParser:
    """Takes lines; `result` is set at the closing brace."""

    name: str = ""
    result: Graph | None = None

    def __post_init__(self) -> None:
        self.inputs: list[Port] = []
        self.weights: list[Port] = []
        self.nodes: list[Node] = []
        self.outputs: tuple[str, ...] = ()
        self.types: dict[str, TensorType] = {}

    def line(self, text: str) -> None:
        if text.startswith("graph "):
            self._header(_Cursor(text))
        elif text.startswith("weight "):
            cursor = _Cursor(text)
            cursor.expect("weight")
            self.weights.append(self._port(cursor))
        elif text.startswith("return "):
            cursor = _Cursor(text)
            cursor.expect("return")
            self.outputs = cursor.values()
        elif text == "}":
            self.result = Graph(
                self.name,
                tuple(self.inputs),
                tuple(self.weights),
                tuple(self.nodes),
                self.outputs,
            )
        else:
            self._node(text)

    def _header(self, cursor: _Cursor) -> None:
        cursor.expect("graph")
        self.name = cursor.next("name")
        cursor.expect("(")
        while not cursor.accept(")"):
            self.inputs.append(self._port(cursor))
            cursor.accept(",")
        cursor.expect("{")

    def _port(self, cursor: _Cursor) -> Port:
        name = cursor.next("value")[1:]
        cursor.expect(":")
        port = Port(name, cursor.type())
        self.types[name] = port.type
        return port

    def _node(self, text: str) -> None:
        text, _, loc = text.partition(" @ ")
        cursor = _Cursor(text)
        outputs = cursor.values()
        cursor.expect("=")
        op_name = cursor.next("name")
        if op_name not in OPS:
            raise ValueError(f"unknown op '{op_name}'; known: {', '.join(sorted(OPS))}")
        cursor.expect("(")
        inputs = () if cursor.accept(")") else cursor.values()
        if inputs:
            cursor.expect(")")
        attributes: dict[str, Any] = {}
        if cursor.accept("{"):
            while not cursor.accept("}"):
                key = cursor.next("name")
                cursor.expect("=")
                attributes[key] = cursor.attribute()
                cursor.accept(",")
        node = Node(OPS[op_name](**attributes), inputs, outputs, loc.strip())
        results = node.op.infer(*(self.types[name] for name in inputs))
        self.types.update(zip(outputs, results, strict=True))
        if cursor.accept(":"):  # the annotation is optional, but never wrong
            for name, actual in zip(outputs, results, strict=True):
                stated = cursor.type()
                if stated != actual:
                    raise ValueError(f"%{name} is {actual}, the text says {stated}")
                cursor.accept(",")
        cursor.end()
        self.nodes.append(node)


class _Cursor:
    """A tokenised line."""

    def __init__(self, text: str) -> None:
        self.tokens: list[tuple[str, str]] = []
        self.index = position = 0
        while position < len(text.rstrip()):
            match = _TOKEN.match(text, position)
            if match is None:
                raise ValueError(f"cannot read '{text[position : position + 20]}'")
            kind = match.lastgroup or ""
            self.tokens.append((kind, match.group(kind)))
            position = match.end()

    def peek(self) -> tuple[str, str]:
        return self.tokens[self.index] if self.index < len(self.tokens) else ("end", "end of line")

    def next(self, kind: str) -> str:
        found, text = self.peek()
        if found != kind:
            raise ValueError(f"expected a {kind}, found '{text}'")
        self.index += 1
        return text

    def accept(self, text: str) -> bool:
        if self.peek()[1] != text or self.peek()[0] == "string":
            return False
        self.index += 1
        return True

    def expect(self, text: str) -> None:
        if not self.accept(text):
            raise ValueError(f"expected '{text}', found '{self.peek()[1]}'")

    def end(self) -> None:
        if self.peek()[0] != "end":
            raise ValueError(f"unexpected '{self.peek()[1]}'")

    def values(self) -> tuple[str, ...]:
        names = [self.next("value")[1:]]
        while self.accept(","):
            names.append(self.next("value")[1:])
        return tuple(names)

    def type(self) -> TensorType:
        dtype = _DTYPE_NAMES[self.next("name")]
        return TensorType(self.attribute(), dtype)

    def attribute(self) -> Any:
        kind, text = self.peek()
        self.index += 1
        if kind == "string":
            return json.loads(text)
        if kind == "batch":
            return parse_dim(text)
        if kind == "operand":
            return text
        if kind == "number":
            return int(text) if re.fullmatch(r"-?\d+", text) else float(text)
        if text == "[":
            return self._items("]")
        if kind == "name":
            return self._named(text)
        raise ValueError(f"expected a value, found '{text}'")

    def _items(self, close: str) -> tuple[Any, ...]:
        items: list[Any] = []
        while not self.accept(close):
            items.append(self.attribute())
            self.accept(",")
        return tuple(items)

    def _named(self, name: str) -> Any:
        if name in ("true", "false", "none"):
            return {"true": True, "false": False, "none": None}[name]
        if name in _DTYPE_NAMES:
            return _DTYPE_NAMES[name]
        arguments: tuple[Any, ...] = self._items(")") if self.accept("(") else ()
        if name == "map":
            return IndexMap(arguments[0], arguments[1:])
        if name in _VIEW_NAMES:
            view = _VIEW_NAMES[name]
            return view(*arguments)
        if name in STEP_ARITY:
            has_operand = bool(arguments) and isinstance(arguments[0], str)
            operand = int(arguments[0][1:]) if has_operand else None
            return Step(
                name,
                operand,
                tuple(float(a) for a in arguments[1 if has_operand else 0 :]),
            )
        raise ValueError(f"unknown name '{name}'")
