"""What a model can be given as: a timm name, an nn.Module, an ExportedProgram, or a .pt2 file."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vitc.errors import UnsupportedModelError, WeightsError

if TYPE_CHECKING:
    from torch import nn

ImageSize = int | tuple[int, int]

_CHECKPOINTS = (".safetensors", ".pth", ".pt", ".bin", ".tar", ".npz")


def create(
    name: str,
    *,
    image_size: ImageSize | None = None,
    num_classes: int | None = None,
    pretrained: bool = True,
    checkpoint: str | Path | None = None,
    **arguments: Any,
) -> nn.Module:
    """The timm model called `name`, in evaluation mode.

    Weights are read from `checkpoint` (.safetensors, .pth, or Google's .npz) by the model's own
    loader, which also resizes position embeddings; else they are timm's pretrained ones; else,
    with pretrained=False, random. `arguments` go to timm.create_model.
    Raises UnsupportedModelError for an unknown name, WeightsError for weights that cannot be had.
    """
    import timm

    if image_size is not None:
        arguments["img_size"] = as_pair(image_size)
    if num_classes is not None:
        arguments["num_classes"] = num_classes
    if checkpoint is not None:
        arguments["pretrained_cfg_overlay"] = _overlay(Path(checkpoint), num_classes)
    base = name.split(".")[0]
    if ":" not in name and not timm.is_model(base):
        close = difflib.get_close_matches(base, timm.list_models(), 3)
        raise UnsupportedModelError(
            f"timm has no model '{name}'",
            hint=f"close names: {', '.join(close)}" if close else "see timm.list_models()",
        )
    load = pretrained or checkpoint is not None
    try:
        return timm.create_model(name, pretrained=load, **arguments).eval()
    except (RuntimeError, OSError, KeyError, ValueError) as error:
        if not load:
            raise
        source = f"'{checkpoint}'" if checkpoint is not None else "timm's hub"
        raise WeightsError(
            f"'{name}' could not get its weights from {source}: {error}",
            hint="give a checkpoint that fits, or for random weights the module itself: "
            f"timm.create_model('{name}').eval()",
        ) from error


def _overlay(checkpoint: Path, num_classes: int | None) -> dict[str, Any]:
    """What makes timm load this file as if it were the model's pretrained weights."""
    _check_file(checkpoint)
    overlay: dict[str, Any] = {"file": str(checkpoint)}
    overlay["custom_load"] = checkpoint.suffix == ".npz"
    if num_classes:  # the file's head is the model's, not one for ImageNet that timm would drop
        overlay["num_classes"] = num_classes
    return overlay


def with_checkpoint(module: nn.Module, checkpoint: str | Path) -> nn.Module:
    """A copy of the module with the checkpoint's weights, read by timm's loader.

    Raises WeightsError for a file that is not there, of unknown kind, or of another model.
    """
    import timm

    _check_file(Path(checkpoint))
    copied = copy.deepcopy(module)
    try:
        load: Any = getattr(timm.models, "load_checkpoint")  # noqa: B009 - untyped in timm
        load(copied, str(checkpoint))
    except (RuntimeError, OSError, KeyError, ValueError, NotImplementedError) as error:
        raise WeightsError(
            f"'{checkpoint}' does not fit {type(module).__name__}: {error}",
            hint="compile the model by its timm name to have checkpoints converted",
        ) from error
    return copied


def _check_file(checkpoint: Path) -> None:
    if not checkpoint.is_file():
        raise WeightsError(f"there is no checkpoint '{checkpoint}'")
    if checkpoint.suffix not in _CHECKPOINTS:
        raise WeightsError(
            f"checkpoint '{checkpoint}' is none of {', '.join(_CHECKPOINTS)}",
            hint="load it into the nn.Module yourself and compile that",
        )


def as_pair(image_size: ImageSize) -> tuple[int, int]:
    """(height, width) of a square's side or of a pair."""
    if isinstance(image_size, int):
        return (image_size, image_size)
    height, width = image_size
    return (int(height), int(width))


def image_shape(module: nn.Module, image_size: ImageSize | None) -> tuple[int, int, int]:
    """(channels, height, width) of the module's images.

    The size is `image_size`, else that of the patch embedding, else that of timm's configuration.
    Raises UnsupportedModelError when none says it, or when they contradict each other.
    """
    embed: Any = getattr(module, "patch_embed", None)
    fixed = getattr(embed, "img_size", None)
    wanted = None if image_size is None else as_pair(image_size)
    strict = getattr(embed, "strict_img_size", True)
    if fixed is not None and wanted is not None and strict and as_pair(fixed) != wanted:
        raise UnsupportedModelError(
            f"{type(module).__name__} is made for images of {_show(as_pair(fixed))}, "
            f"not {_show(wanted)}",
            hint="call model.set_input_size(img_size=...) first, or compile it by its timm name",
        )
    config = configuration(module).get("input_size")
    known: Any = fixed if fixed is not None else config and tuple(config)[1:]
    if wanted is None and not known:
        raise UnsupportedModelError(
            f"nothing says which image size {type(module).__name__} takes",
            hint="pass image_size=(height, width)",
        )
    return (_channels(module), *(wanted or as_pair(known)))


def _channels(module: nn.Module) -> int:
    from torch import nn

    convolutions = (part for part in module.modules() if isinstance(part, nn.Conv2d))
    first = next(convolutions, None)
    if first is not None:
        return first.in_channels
    return int((configuration(module).get("input_size") or (3,))[0])


def configuration(module: object) -> Mapping[str, Any]:
    """timm's description of a model: architecture, input size, mean, ...; empty for others."""
    config = getattr(module, "pretrained_cfg", None) or getattr(module, "default_cfg", None)
    return config if isinstance(config, Mapping) else {}  # pyright: ignore[reportUnknownVariableType]


def preprocessing(module: object, shape: tuple[int, int, int]) -> dict[str, Any]:
    """How images are prepared: mean, std, interpolation, crop_pct, crop_mode, input_size.

    As timm resolves its configuration; empty for a model that has none.
    """
    if not configuration(module):
        return {}
    from timm import data

    resolve: Any = getattr(data, "resolve_data_config")  # noqa: B009 - untyped in timm
    resolved: dict[str, Any] = resolve({}, pretrained_cfg=dict(configuration(module)))
    return {**resolved, "input_size": shape}


def _show(size: tuple[int, int]) -> str:
    return f"{size[0]}x{size[1]}"
