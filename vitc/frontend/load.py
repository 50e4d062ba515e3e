"""import_model: any source of a model to a graph and its weights."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.errors import UnsupportedModelError
from vitc.frontend.export import export_module
from vitc.frontend.importer import import_program
from vitc.frontend.signature import batch_limit, to_numpy
from vitc.frontend.sources import (
    ImageSize,
    configuration,
    create,
    image_shape,
    preprocessing,
    with_checkpoint,
)
from vitc.ir.graph import Graph
from vitc.ir.op import Array

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram


@dataclass(frozen=True)
class Imported:
    """A model in the compiler's terms.

    graph: in normal form, float32, with a symbolic batch; its weights are the tensors it reads.
    state: the whole state dict as arrays, sharing the model's memory where it is on the CPU.
    preprocess: how images are prepared, see `preprocessing`; empty when nothing says it.
    source: the nn.Module or ExportedProgram that was imported; verification runs it.
    """

    graph: Graph
    state: Mapping[str, Array]
    preprocess: Mapping[str, Any] = field(default_factory=dict[str, Any])
    name: str = ""
    source: Any = None


def import_model(
    model: str | nn.Module | ExportedProgram,
    *,
    image_size: ImageSize | None = None,
    features: bool = False,
    checkpoint: str | Path | None = None,
    max_batch: int | None = None,
    name: str | None = None,
    **arguments: Any,
) -> Imported:
    """The graph, weights and preprocessing of a model.

    model: a timm name (`arguments` are those of `vitc.frontend.sources.create`), an nn.Module in
        evaluation mode, an ExportedProgram with a dynamic batch, or the path of a saved one (.pt2).
    image_size: height and width, or the side of a square; else the model's own.
    features: import forward_features in the place of forward.
    checkpoint: a .safetensors, .pth or Google .npz file with the weights to use. An nn.Module is
        copied for it, and stays as it is.
    max_batch: the largest batch that will run; an ExportedProgram may have been made for less.
    Raises UnsupportedModelError for a model that vitc cannot compile, naming every such operation
    with module path and source line; WeightsError for weights that cannot be had.
    """
    from torch import nn

    if isinstance(model, str) and model.endswith(".pt2"):
        import torch

        name, model = name or Path(model).stem, torch.export.load(model)
    elif isinstance(model, str):
        model = create(model, image_size=image_size, checkpoint=checkpoint, **arguments)
        image_size = checkpoint = None
    elif arguments:
        raise TypeError(f"only a timm name takes {', '.join(arguments)}")
    if isinstance(model, nn.Module):
        if checkpoint is not None:
            model = with_checkpoint(model, checkpoint)
        return _import_module(model, image_size, features, name)
    if features or image_size is not None or checkpoint is not None:
        raise UnsupportedModelError(
            "an ExportedProgram has its image size, outputs and weights already",
            hint="pass the nn.Module to choose image_size, features or checkpoint",
        )
    return _import_exported(model, max_batch, name or "exported")


def _import_module(
    module: nn.Module, image_size: ImageSize | None, features: bool, name: str | None
) -> Imported:
    shape = image_shape(module, image_size)
    called = name or str(configuration(module).get("architecture") or type(module).__name__)
    program = export_module(module, shape, features=features)
    graph = import_program(program, called)
    return Imported(graph, _state(program), preprocessing(module, shape), called, module)


def _import_exported(program: ExportedProgram, max_batch: int | None, name: str) -> Imported:
    limit = batch_limit(program)
    if max_batch is not None and limit is not None and max_batch > limit:
        raise UnsupportedModelError(
            f"'{name}' was exported for batches up to {limit}, not {max_batch}",
            hint="export it with a larger Dim('batch', max=...), or compile for a smaller batch",
        )
    return Imported(import_program(program, name), _state(program), {}, name, program)


def _state(program: ExportedProgram) -> dict[str, Array]:
    return {name: to_numpy(tensor) for name, tensor in program.state_dict.items()}
