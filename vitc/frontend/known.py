"""Tensors that neither the images nor the state dict have a part in.

Positions, masks and index tables are often computed in `forward` from sizes alone. torch itself
evaluates such calls, so that they need no importer: a comparison of two ranges is a literal.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from vitc.ir.op import Array

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping

    from torch.fx import Node


class _Unknown(Exception):
    """An argument depends on the images, the batch or the weights."""


class Known:
    """What is known of an exported graph's nodes, as tensors or tuples of them."""

    def __init__(self) -> None:
        self.tensors: dict[Node, Any] = {}

    def place(self, node: Node, array: Array) -> None:
        """Makes a constant of the program known."""
        import torch

        self.tensors[node] = torch.tensor(array)

    def run(self, node: Node, values: Mapping[Node, Any]) -> Any:
        """The call's result, None unless it is determined; `values` has the sizes of dimensions."""
        import torch
        from torch.fx.node import map_arg

        target: Any = node.target
        if torch.Tag.nondeterministic_seeded in getattr(target, "tags", ()):
            return None

        def known(argument: Node) -> Any:
            if argument in self.tensors:
                return self.tensors[argument]
            value = values.get(argument)
            if isinstance(value, int | float):
                return value
            raise _Unknown

        apply: Callable[..., Any] = map_arg
        try:
            arguments, options = apply(node.args, known), apply(node.kwargs, known)
        except _Unknown:
            return None
        if "device" in options:
            options = {**options, "device": torch.device("cpu")}
        with torch.no_grad():
            result = target(*arguments, **options)
        self.tensors[node] = result
        return result
