"""nn.Module to ExportedProgram, with a dynamic batch."""

from __future__ import annotations

import copy
import inspect
import warnings
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, cast

from vitc.errors import UnsupportedModelError

if TYPE_CHECKING:
    from torch import nn
    from torch.export import ExportedProgram

_EXAMPLE_BATCH = 2  # 0 and 1 would be taken for constants


def export_module(
    module: nn.Module, image_shape: tuple[int, int, int], *, features: bool = False
) -> ExportedProgram:
    """The module's `forward` (or `forward_features`) on images [B, *image_shape], float32.

    Raises UnsupportedModelError for a module in training mode, one that is not float32, or one
    whose Python code torch.export cannot follow. The module is left as it is.
    """
    import torch
    from torch.export import Dim, export

    check_module(module)
    if features:
        module = _features_of(module)
    _check_arguments(module)
    device = next((p.device for p in module.parameters()), torch.device("cpu"))
    images = torch.zeros(_EXAMPLE_BATCH, *image_shape, device=device)
    batch = {0: Dim("batch", min=1)}
    try:
        with torch.no_grad(), _without_caches(module):
            return export(module, (images,), dynamic_shapes=(batch,), strict=False)
    except Exception as error:
        reason = next((line for line in str(error).splitlines() if line.strip()), "")
        raise UnsupportedModelError(
            f"torch.export cannot follow {type(module).__name__} on images "
            f"{list(image_shape)}: {type(error).__name__}: {reason.strip()}",
            hint="its control flow and shapes must not depend on the images or the batch",
        ) from error


@contextmanager
def _without_caches(module: nn.Module) -> Generator[None]:
    """Empties what modules have cached of earlier runs, as LeViT does with its biases.

    A cached tensor would become a constant of the graph, although it follows from parameters.
    """
    kept: list[tuple[dict[str, Any], str, Any]] = []
    for part in module.modules():
        for name, value in vars(part).items():
            if name.endswith("_cache") and isinstance(value, dict):
                kept.append((vars(part), name, cast("dict[str, Any]", value)))
    for attributes, name, _ in kept:
        attributes[name] = {}
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "The tensor attribute.* assigned during export")
            yield
    finally:
        for attributes, name, value in kept:
            attributes[name] = value


def check_module(module: nn.Module) -> None:
    """Raises UnsupportedModelError unless the module is ready to be exported."""
    import torch

    name = type(module).__name__
    untyped: Any = module  # torch annotates named_modules in part only
    parts: list[tuple[str, nn.Module]] = list(untyped.named_modules())
    training = [path or "itself" for path, part in parts if part.training]
    if training:
        raise UnsupportedModelError(
            f"{name} is in training mode ({training[0]})", hint="call model.eval() first"
        )
    for path, part in parts:
        if "quantized" in type(part).__module__.split("."):
            raise UnsupportedModelError(
                f"'{path}' of {name} is a quantized module",
                hint="compile the float32 model; vitc.compile(dtype=...) reduces precision",
            )
    for path, tensor in (*module.named_parameters(), *module.named_buffers()):
        if tensor.is_meta:
            raise UnsupportedModelError(
                f"'{path}' of {name} is on the meta device: it has no elements",
                hint="load the weights before compiling",
            )
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            raise UnsupportedModelError(
                f"'{path}' of {name} is {str(tensor.dtype).removeprefix('torch.')}, not float32",
                hint="call model.float(); vitc.compile(dtype=...) chooses what it computes in",
            )


def _features_of(module: nn.Module) -> nn.Module:
    """The module with `forward_features` for its forward; parameters keep their names."""
    if not hasattr(module, "forward_features"):
        raise UnsupportedModelError(f"{type(module).__name__} has no forward_features")
    view: Any = copy.copy(module)
    view.forward = view.forward_features
    return view


def _check_arguments(module: nn.Module) -> None:
    """Raises UnsupportedModelError when forward needs more than the images."""
    parameters = list(inspect.signature(module.forward).parameters.values())
    positional = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    needed = [
        p.name
        for p in parameters
        if p.default is inspect.Parameter.empty
        and p.kind in (*positional, inspect.Parameter.KEYWORD_ONLY)
    ]
    if len(needed) > 1:
        raise UnsupportedModelError(
            f"forward of {type(module).__name__} takes {', '.join(needed)}: more than the images",
            hint="export it yourself with torch.export and hand vitc the ExportedProgram",
        )
