"""Small modules through the frontend, compared with themselves in float64."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from models.sweep import double_throughout
from torch import Tensor, nn

from vitc.frontend import Imported, import_model
from vitc.ir.interp import interpret
from vitc.ir.text import parse_graph, print_graph
from vitc.verify import images, redraw, reference, relative_error

IMAGE = (3, 12, 10)
EXACT = 1e-12


class Apply(nn.Module):
    """A function of the images, with parameters to use."""

    def __init__(self, function: Callable[..., Tensor], **tensors: Tensor) -> None:
        super().__init__()
        self.function = function
        for name, tensor in tensors.items():
            self.register_parameter(name, nn.Parameter(tensor))

    def forward(self, x: Tensor) -> Tensor:
        return self.function(self, x)


def interpreted(imported: Imported, photos: Tensor) -> Tensor:
    """The graph's one result in float64."""
    name = imported.graph.inputs[0].name
    (only,) = interpret(imported.graph, {name: photos.numpy()}, imported.state).values()
    return torch.from_numpy(only.copy())


def error_of(
    model: nn.Module, imported: Imported, shape: tuple[int, int, int], **options: Any
) -> float:
    """Relative L2 error of the graph on three images."""
    photos = images(3, shape, seed=5)
    with double_throughout():
        expected = reference(model, photos, **options)
    return relative_error(interpreted(imported, photos), expected)


def agree(
    module: nn.Module, shape: tuple[int, int, int] = IMAGE, *, drawn: bool = True
) -> Imported:
    """Imports the module and asserts that graph and module agree; the graph survives its text."""
    module.eval()
    if drawn:
        redraw(module, seed=3)
    imported = import_model(module, image_size=shape[1:])
    assert parse_graph(print_graph(imported.graph)) == imported.graph
    assert error_of(module, imported, shape) <= EXACT
    return imported
