"""Which of timm's models vitc handles: imports or compiles each, and compares with timm in float64.

    python tests/models/sweep.py                       all ViT names, import stage
    python tests/models/sweep.py --filter dinov3 --stage cpu --json out.json

Depth is cut to two blocks and big models see small images, so that a name takes seconds: what
tells the names apart (heads, norms, gates, tokens, stems, pooling) stays. Every parameter is
redrawn first, so that each of them counts.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor, nn

from vitc.errors import VitcError
from vitc.frontend import import_model
from vitc.frontend.sources import image_shape
from vitc.ir.interp import interpret
from vitc.verify import eager, images, redraw, reference, relative_error
from vitc.version import __version__

FAMILIES: dict[str, tuple[str, ...]] = {
    "vit": ("vision_transformer", "deit", "vision_transformer_hybrid"),
    "swin": ("swin_transformer", "swin_transformer_v2"),
    "levit": ("levit",),
}
# Relative L2 error that counts as equal: rounding of float64, of float32. On the CPU the error may
# also be 1.5 times that of eager torch in float32, which a deep ResNet stem takes beyond 1e-5.
BOUNDS = {"import": 1e-12, "cpu": 1e-5}

_BATCH = 2
_DEPTH = 2
# Multiply-adds per image that a model may take before its images are cut down, about.
_WORK = 1.5e9
_SMALLEST_GRID = 4


@dataclass(frozen=True)
class Outcome:
    """What became of one name. `error` is None when there was no result to compare."""

    name: str
    verified: bool
    error: float | None
    image_size: tuple[int, int]
    seconds: float
    message: str = ""


def names(families: Iterable[str], part: str = "") -> list[str]:
    """Names of the families' models in timm's registry that contain `part`."""
    modules = [module for family in families for module in FAMILIES[family]]
    return [name for module in modules for name in timm.list_models(module=module) if part in name]


def build(name: str) -> nn.Module:
    """The model with two blocks (a stage), on images small enough, with redrawn parameters."""
    arguments: dict[str, Any] = _cut_depth(name)
    with torch.device("meta"):
        size = _affordable(timm.create_model(name, **arguments))
    if size is not None:
        arguments["img_size"] = size
    model = timm.create_model(name, **arguments)
    redraw(model, seed=1)
    return model.eval()


def _cut_depth(name: str) -> dict[str, Any]:
    module = timm.model_entrypoint(name).__module__.rpartition(".")[2]
    if module in FAMILIES["swin"]:
        return {"depths": (_DEPTH,) * 4}
    return {"depth": (_DEPTH,) * 3 if module in FAMILIES["levit"] else _DEPTH}


def _affordable(model: nn.Module) -> tuple[int, int] | None:
    """A smaller image size for an expensive model, None for the model's own."""
    embed: Any = getattr(model, "patch_embed", None)
    grid = getattr(embed, "grid_size", None)
    if grid is None or hasattr(model, "layers"):
        return None
    rows, columns = grid
    tokens = _WORK / sum(parameter.numel() for parameter in model.parameters())
    shrink = min(1.0, (tokens / (rows * columns)) ** 0.5)
    if shrink == 1.0:
        return None
    height, width = embed.img_size
    # One column more than rows: a transposed grid shows.
    down = max(_SMALLEST_GRID, int(rows * shrink))
    return (down * height // rows, (down + 1) * width // columns)


def by_import(model: nn.Module, photos: Tensor) -> Tensor:
    """The imported graph, interpreted in float64."""
    imported = import_model(model)
    result = interpret(
        imported.graph, {imported.graph.inputs[0].name: photos.numpy()}, imported.state
    )
    (only,) = result.values()
    return torch.from_numpy(only)


def by_cpu(model: nn.Module, photos: Tensor) -> Tensor:
    """The library for this machine's CPU, in float32."""
    import vitc

    with vitc.compile(model, batch=_BATCH, target=cpu_target(), dtype="float32") as module:
        return torch.as_tensor(module(photos))


def cpu_target() -> str:
    """The best instruction set of this machine alone: the library runs only here, and only once."""
    avx512 = "avx512dq" in Path("/proc/cpuinfo").read_text()
    return "cpu:avx512" if avx512 else "cpu:avx2"


@contextmanager
def double_throughout() -> Iterator[None]:
    """Some models call .float() on gates or position embeddings: not in a float64 reference."""
    original = torch.Tensor.float
    torch.Tensor.float = lambda self: self if self.dtype is torch.float64 else original(self)
    try:
        yield
    finally:
        torch.Tensor.float = original


STAGES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {"import": by_import, "cpu": by_cpu}


def check(name: str, stage: str = "import") -> Outcome:
    """Runs one name through a stage. Errors of vitc are outcomes; others are bugs and raise."""
    start = time.perf_counter()
    model = build(name)
    shape = image_shape(model, None)
    photos = images(_BATCH, shape, seed=2)
    error, message = None, ""
    try:
        result = STAGES[stage](model, photos)
        with double_throughout():
            error = relative_error(result, reference(model, photos))
    except VitcError as refused:
        message = str(refused)
    seconds = round(time.perf_counter() - start, 2)
    verified = error is not None and error <= BOUNDS[stage]
    if error is not None and not verified and stage == "cpu":
        verified = error <= 1.5 * relative_error(
            eager(model, photos, torch.float32), reference(model, photos)
        )
    return Outcome(name, verified, error, shape[1:], seconds, message)


def sweep(wanted: Iterable[str], stage: str) -> Iterator[Outcome]:
    for name in wanted:
        yield check(name, stage)


def report(outcomes: list[Outcome], stage: str) -> dict[str, Any]:
    """What the JSON file holds."""
    return {
        "stage": stage,
        "bound": BOUNDS[stage],
        "verified": sum(outcome.verified for outcome in outcomes),
        "names": len(outcomes),
        "families": _by_family(outcomes),
        "date": date.today().isoformat(),
        "versions": {"vitc": __version__, "torch": torch.__version__, "timm": timm.__version__},
        "depth": _DEPTH,
        "models": [asdict(outcome) for outcome in outcomes],
    }


def _by_family(outcomes: list[Outcome]) -> dict[str, str]:
    """ "193 of 193" for each family that was looked at."""
    counts: dict[str, str] = {}
    for family in FAMILIES:
        members = set(names([family]))
        found = [outcome.verified for outcome in outcomes if outcome.name in members]
        if found:
            counts[family] = f"{sum(found)} of {len(found)}"
    return counts


def _survive(name: str, stage: str) -> Outcome:
    """As `check`, but a bug in one model does not end the sweep."""
    try:
        return check(name, stage)
    except Exception as bug:  # noqa: BLE001
        return Outcome(name, False, None, (0, 0), 0.0, f"{type(bug).__name__}: {bug}")


def main() -> int:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--family", choices=FAMILIES, nargs="+", default=["vit"])
    parser.add_argument("--filter", default="", help="names that contain this")
    parser.add_argument("--stage", choices=STAGES, default="import")
    parser.add_argument("--json", type=Path, help="write the outcomes to this file")
    given = parser.parse_args()

    wanted = names(given.family, given.filter)
    console = Console()
    outcomes: list[Outcome] = []
    for name in track(wanted, f"{given.stage} of {len(wanted)} models", console=console):
        outcomes.append(_survive(name, given.stage))
        if given.json is not None:  # after each, so that an interrupted sweep leaves its part
            given.json.write_text(json.dumps(report(outcomes, given.stage), indent=1) + "\n")
        if not outcomes[-1].verified:
            console.print(f"{name}: {outcomes[-1].error} {outcomes[-1].message}")
    table = Table("model", "image", "relative error", "seconds", "")
    for outcome in outcomes:
        shown = "-" if outcome.error is None else f"{outcome.error:.1e}"
        verdict = "[green]verified[/]" if outcome.verified else f"[red]{outcome.message or 'wrong'}"
        size = f"{outcome.image_size[0]}x{outcome.image_size[1]}"
        table.add_row(outcome.name, size, shown, f"{outcome.seconds:.1f}", verdict)
    console.print(table)
    summary = report(outcomes, given.stage)
    console.print(f"{summary['verified']} of {summary['names']} verify ({given.stage})")
    return 0 if summary["verified"] == summary["names"] else 1


if __name__ == "__main__":
    raise SystemExit(main())
