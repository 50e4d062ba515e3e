"""Where a node of an exported graph comes from: the module path and the line of source."""

from __future__ import annotations

import re
from pathlib import PurePath
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from torch.fx import Node

_FRAME = re.compile(r'^\s*File "(?P<file>[^"]+)", line (?P<line>\d+), in ', re.MULTILINE)
_REPEATED = re.compile(r"@\d+$")  # torch marks the second call of one module so
_SHORT = {"scaled_dot_product_attention": "attention"}


def module_path(node: Node) -> str:
    """Path of the innermost module that ran the node, such as "blocks.0.attn"; "" for the model."""
    stack: dict[str, tuple[str, Any]] = node.meta.get("nn_module_stack") or {}
    entries = list(stack.values())
    return _REPEATED.sub("", str(entries[-1][0])) if entries else ""


def source_line(node: Node) -> str:
    """ "attention.py:124": the innermost line outside torch itself, "" when it was not recorded."""
    frames = _FRAME.findall(str(node.meta.get("stack_trace") or ""))
    own = [frame for frame in frames if "torch" not in PurePath(frame[0]).parts]
    for file, line in reversed(own or frames):
        return f"{PurePath(file).name}:{line}"
    return ""


def location(node: Node) -> str:
    """What `loc` of the IR nodes is: "blocks.0.attn attention.py:124"."""
    return " ".join(part for part in (module_path(node), source_line(node)) if part)


def call_name(node: Node) -> str:
    """The call without namespace and overload: "linear" for aten.linear.default."""
    name = getattr(node.target, "__name__", str(node.target)).split(".")[0]
    return _SHORT.get(name, name).strip("_")


class Names:
    """What the values of a graph are called.

    The last call of a module without submodules has the module's own path, as in
    "blocks.0.attn.qkv"; any other call has its name behind the path, as in "blocks.0.attn.unbind".
    """

    def __init__(self, nodes: list[Node]) -> None:
        paths = [module_path(node) for node in nodes]
        parents = {path.rpartition(".")[0] for path in paths if path}
        for parent in list(parents):  # all the way up
            while parent:
                parents.add(parent)
                parent = parent.rpartition(".")[0]
        self._last = {
            path: node
            for path, node in zip(paths, nodes, strict=True)
            if path and path not in parents
        }

    def hint(self, node: Node) -> str:
        path = module_path(node)
        if self._last.get(path) is node:
            return path
        return ".".join(part for part in (path, call_name(node)) if part)
