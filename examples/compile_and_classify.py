"""From a timm model to a compiled library that classifies a photo. `make demo` runs this.

Shows each stage with its time, the library, its error against timm in float64, the five best
classes beside timm's, and the latency beside torch eager in the same run.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import matplotlib
import timm
import torch
from PIL import Image
from rich.console import Console
from rich.table import Table
from timm.data import ImageNetInfo, create_transform, resolve_model_data_config
from torch import Tensor, nn

import vitc
from vitc.bench import bench
from vitc.hub import hub_answers
from vitc.report import bench_table, compile_tables
from vitc.verify import redraw, reference, verify

PHOTO = Path(matplotlib.get_data_path()) / "sample_data" / "grace_hopper.jpg"

console = Console()


def load_model(name: str) -> nn.Module:
    """With pretrained weights where they can be had, else with weights drawn at random."""
    online = hub_answers()
    try:
        model = timm.create_model(name, pretrained=True).eval()
        console.print(f"{name} with timm's pretrained weights")
    except (OSError, RuntimeError):
        model = timm.create_model(name, pretrained=False).eval()
        redraw(model, seed=0)
        why = "the hub has none" if online else "the hub does not answer"
        console.print(
            f"{name} with [bold]redrawn weights[/]: {why}, so the classes mean nothing, but both "
            "sides must find the same"
        )
    return model


def photo(model: nn.Module, path: Path) -> Tensor:
    """The picture as the model wants it, by timm's own transform: [1, 3, H, W]."""
    transform = create_transform(**resolve_model_data_config(model), is_training=False)
    with Image.open(path) as picture:
        return transform(picture.convert("RGB")).unsqueeze(0)


def compile_model(model: nn.Module, name: str, batch: int, output: Path) -> vitc.CompiledModule:
    with console.status("compiling") as status:

        def progress(stage: str, done: int, total: int) -> None:
            status.update(f"compiling: {stage} {done}/{total}")

        module = vitc.compile(model, batch=batch, output=output, name=name, progress=progress)
    console.print(*compile_tables(module.report))
    size = module.path.stat().st_size
    console.print(f"library: {module.path} ({size / 2**20:.1f} MiB: code, weights, manifest)\n")
    return module


def top5(logits: Tensor, other: Tensor) -> Table:
    """The five best classes of both, with their probabilities."""
    info = ImageNetInfo()
    table = Table("vitc", "", "timm in float64", "", title="top 5", title_justify="left")
    columns: list[list[str]] = []
    for values in (logits, other):
        best = values[0].softmax(-1).topk(5)
        pairs = zip(best.values.tolist(), best.indices.tolist(), strict=True)
        rows = [(info.index_to_description(i).split(",")[0], f"{100 * p:.2f} %") for p, i in pairs]
        columns += [[name for name, _ in rows], [share for _, share in rows]]
    for row in zip(*columns, strict=True):
        table.add_row(*row)
    return table


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", default="vit_base_patch16_224")
    parser.add_argument("--batch", type=int, default=1, help="largest batch of the library")
    parser.add_argument("--photo", type=Path, default=PHOTO)
    parser.add_argument("--output", type=Path, default=None, help="the library; build/NAME.so")
    parser.add_argument("--seconds", type=float, default=3.0, help="of timing, per contender")
    options = parser.parse_args()
    output = options.output or Path("build") / f"{options.model}.so"

    model = load_model(options.model)
    module = compile_model(model, options.model, options.batch, output)
    image = photo(model, options.photo)
    expected = reference(model, image)
    # A GPU's library takes images on the GPU, in the dtype that it computes in.
    taken = image.to(module.place.torch_name, getattr(torch, module.inputs[0].dtype))
    logits = module(taken).double().cpu()
    verified = verify(module, model, image, localise=False)
    console.print(
        f"{options.photo.name}: error {verified.error:.1e} against timm in float64 (at most "
        f"{verified.bound:.1e} is right)"
    )
    console.print(top5(logits, expected))
    with console.status("verifying and timing"):
        report = bench(
            module, model, batches=[options.batch], peers=("eager",), seconds=options.seconds
        )
    console.print(bench_table(report))
    same = logits.argmax(-1).equal(expected.argmax(-1))
    return 0 if verified.passed and same else 1


if __name__ == "__main__":
    raise SystemExit(main())
