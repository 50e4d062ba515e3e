"""Options that several commands share, and how a command comes by its model and library."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from vitc.cli.output import Tell, split
from vitc.errors import InputError, WeightsError

if TYPE_CHECKING:
    from torch import nn

    from vitc.compiler import CompiledModule
    from vitc.runtime.module import Module

ModelArg = Annotated[
    str, typer.Argument(metavar="MODEL", help="A timm model name, or a saved .pt2 program.")
]
SubjectArg = Annotated[
    str, typer.Argument(metavar="MODEL", help="A timm model name, or a compiled library (.so).")
]
BatchOpt = Annotated[
    list[str] | None,
    typer.Option("--batch", "-b", help="Largest batch; several (1,8,64) tune for each."),
]
TargetOpt = Annotated[
    str | None,
    typer.Option(help="cpu, cuda:sm_80 and others; the best of this machine by default."),
]
DtypeOpt = Annotated[
    str | None,
    typer.Option(help="float32, bfloat16, float16 or tf32; the target's first by default."),
]
SizeOpt = Annotated[
    str | None, typer.Option("--image-size", help="224 or HEIGHTxWIDTH; the model's by default.")
]
CheckpointOpt = Annotated[
    Path | None, typer.Option(help="Weights: .safetensors, .pth or Google's .npz.")
]
PretrainedOpt = Annotated[bool, typer.Option("--pretrained", help="Use timm's pretrained weights.")]
SeedOpt = Annotated[int, typer.Option(help="Of redrawn weights and images.")]
FeaturesOpt = Annotated[
    bool, typer.Option("--features", help="Compile forward_features, not forward.")
]
ClassesOpt = Annotated[
    int | None, typer.Option("--num-classes", help="Of the head; 0 leaves it out.")
]
DisableOpt = Annotated[
    list[str] | None, typer.Option("--disable", help="Passes or rules to leave out (vitc opt -l).")
]
ThreadsOpt = Annotated[int | None, typer.Option(help="CPU threads; all by default.")]
JobsOpt = Annotated[int | None, typer.Option(help="Compilers at once; one per CPU by default.")]
JsonOpt = Annotated[bool, typer.Option("--json", help="Results as JSON on stdout.")]
DebugOpt = Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")]


def parse_batches(values: Sequence[str] | None, default: int | None = 1) -> list[int]:
    """["1,8", "64"] to [1, 8, 64]. Raises InputError."""
    parts = split(values) or ([str(default)] if default else [])
    try:
        return [int(part) for part in parts]
    except ValueError:
        raise InputError(f"--batch {','.join(parts)} is not a list of numbers") from None


def parse_size(value: str | None) -> tuple[int, int] | None:
    """ "224" or "224x320" to (height, width). Raises InputError."""
    if value is None:
        return None
    height, _, width = value.lower().partition("x")
    try:
        return int(height), int(width or height)
    except ValueError:
        raise InputError(f"--image-size {value} is neither N nor HEIGHTxWIDTH") from None


def parse_names(values: Sequence[str] | None) -> list[str]:
    """Names of passes and rules. Raises InputError for unknown ones, before any work is done."""
    from vitc.passes.pipeline import known_names

    names, known = split(values), known_names()
    unknown = [name for name in names if name not in known]
    if unknown:
        close = difflib.get_close_matches(unknown[0], known, 3) or ["see vitc opt --list"]
        raise InputError(f"no pass or rule is called '{unknown[0]}'", hint=", ".join(close))
    return names


def is_library(subject: str) -> bool:
    """Whether the command is about a compiled library rather than a model."""
    return subject.endswith(".so")


def create_model(
    name: str,
    *,
    size: tuple[int, int] | None = None,
    classes: int | None = None,
    checkpoint: Path | None = None,
    pretrained: bool = False,
    seed: int | None = 0,
) -> nn.Module:
    """The timm model with the weights asked for; else redrawn ones, or timm's own if seed is None.

    Raises WeightsError, UnsupportedModelError.
    """
    from vitc.frontend.sources import create
    from vitc.hub import hub_answers
    from vitc.verify import redraw

    if pretrained and checkpoint is None:
        hub_answers()
    try:
        model = create(
            name, image_size=size, num_classes=classes, checkpoint=checkpoint, pretrained=pretrained
        )
    except WeightsError as error:
        if checkpoint is not None:
            raise
        hint = "give a --checkpoint, or compile with --redraw to try it with random weights"
        raise WeightsError(error.message, hint=hint) from error
    if not pretrained and checkpoint is None and seed is not None:
        redraw(model, seed)
    return model


def compile_model(model: Any, name: str, batches: Sequence[int], tell: Tell, **options: Any) -> Any:
    """vitc.compile with progress; a CompiledModule."""
    import vitc

    module: CompiledModule = vitc.compile(
        model, batch=list(batches), name=name.split(".")[0], progress=tell, **options
    )
    return module


def load_library(path: str, threads: int | None) -> Module:
    """vitc.load."""
    import vitc

    return vitc.load(path, threads=threads)


def model_of_library(
    module: Any,
    name: str | None,
    *,
    checkpoint: Path | None,
    pretrained: bool,
    seed: int,
) -> nn.Module:
    """The model that a library is compared with.

    With a checkpoint or pretrained weights the library keeps its own, which must be the same. Else
    both get the same redrawn weights, the library in memory only. Raises InputError without a name.
    """
    from vitc.verify.handle import image_shape

    known = name or _timm_name(str(module.manifest["name"]))
    if known is None:
        raise InputError("which model is this library of?", hint="say it: --model NAME")
    outputs = module.manifest["outputs"][0]["shape"]
    classes = None if module.manifest.get("features") or len(outputs) != 2 else int(outputs[1])
    height, width = image_shape(module)[1:]
    model = create_model(
        known,
        size=(height, width),
        classes=None if classes == _default_classes(known) else classes,
        checkpoint=checkpoint,
        pretrained=pretrained,
        seed=seed,
    )
    if checkpoint is None and not pretrained:
        module.load_weights(model.state_dict())
    return model


def _timm_name(name: str) -> str | None:
    import timm

    return name if timm.is_model(name) else None


def _default_classes(name: str) -> int | None:
    import timm

    config: Any = timm.get_pretrained_cfg(name, allow_unregistered=True)
    return getattr(config, "num_classes", None)
