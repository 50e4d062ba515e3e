"""Calls that write to their argument, as `relu_` does, in a graph of values.

Where nothing but the written tensor itself is read afterwards, the call is an ordinary one and
later readers of the argument get its result. Where another view of the same memory is read
afterwards, the call is refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from vitc.ops.aten import Unsupported

if TYPE_CHECKING:
    from torch.fx import Node


# They return their argument itself in evaluation mode, which their schemas do not say. In graphs of
# torch 2.9, unlike those of 2.15, the argument is still read where the result has been written to.
_SAME = frozenset(
    f"aten.{name}.default" for name in ("dropout", "feature_dropout", "alpha_dropout")
)


class Aliases:
    """Which nodes of a graph may share memory, by the schemas of the calls."""

    def __init__(self, nodes: Sequence[Node]) -> None:
        self._position = {node: i for i, node in enumerate(nodes)}
        self._group: dict[Node, list[Node]] = {}
        for node in nodes:
            viewed = _viewed(node)
            group = [] if viewed is None else self._group[viewed]
            group.append(node)
            self._group[node] = group

    def mutated(self, node: Node) -> Node | None:
        """The argument that the call writes to, None when it writes to none."""
        for argument, value in zip(_schema_arguments(node), node.args, strict=False):
            info = argument.alias_info
            if info is not None and info.is_write and value in self._group:
                return value  # pyright: ignore[reportReturnType]
        return None

    def check(self, node: Node) -> None:
        """Raises Unsupported when the call writes to memory that is read under another name."""
        written = self.mutated(node)
        if written is None:
            return
        if written.op == "placeholder":
            raise Unsupported(f"writes to '{written.name}'")
        for other in self._group[written]:
            if other is written or other is node or self._position[other] > self._position[node]:
                continue
            if any(self._position[user] > self._position[node] for user in other.users):
                raise Unsupported(f"writes to memory that '{other.name}' shares")


def _schema_arguments(node: Node) -> Sequence[Any]:
    schema = getattr(node.target, "_schema", None)
    return schema.arguments if schema is not None else ()


def _viewed(node: Node) -> Node | None:
    """The node whose memory this node's result may be."""
    if node.op != "call_function":
        return None
    if getattr(node.target, "__name__", "") == "getitem":
        return node.args[0]  # pyright: ignore[reportReturnType]
    same = str(node.target) in _SAME
    for argument, value in zip(_schema_arguments(node), node.args, strict=False):
        if (same or argument.alias_info is not None) and hasattr(value, "op"):
            return value  # pyright: ignore[reportReturnType]
    return None
