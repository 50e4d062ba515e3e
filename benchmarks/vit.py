"""Compiles, verifies and times ViTs beside torch, all in one process; writes one results file.

    python benchmarks/vit.py --plan h100 --output benchmarks/h100/vit.json
    python benchmarks/vit.py --plan cpu --output benchmarks/cpu/vit.json

A plan is a list of libraries: model, dtype, target, batches, peers. Weights are redrawn, inputs are
random and distinct, nothing is timed that has not verified. The results file names card, driver,
toolkit and date; a table of it is printed. `--only` takes the libraries whose name has this text.
"""

from __future__ import annotations

import argparse
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from rich.console import Console

import vitc
from vitc.bench import bench
from vitc.errors import VitcError
from vitc.report import bench_table
from vitc.verify import images, redraw


@dataclass(frozen=True)
class Library:
    """One library to make and time."""

    model: str
    dtype: str
    target: str
    batches: tuple[int, ...]
    peers: tuple[str, ...] = ("eager", "graph")
    profiled: int = 0  # batch whose kernels are timed one by one, 0 for none

    @property
    def name(self) -> str:
        return f"{self.model} {self.dtype} {self.target}"


_ALL = (1, 8, 32)
PLANS: dict[str, tuple[Library, ...]] = {
    "h100": (
        Library("vit_base_patch16_224", "float16", "cuda:sm_90a", (*_ALL, 256), profiled=32),
        Library("vit_base_patch16_224", "float16", "cuda:sm_80", (*_ALL, 256), profiled=32),
        Library("vit_base_patch16_224", "bfloat16", "cuda:sm_80", (*_ALL, 256)),
        Library("vit_base_patch16_224", "tf32", "cuda:sm_80", (*_ALL, 256)),
        Library("vit_base_patch16_224", "float16", "cuda:sm_75", _ALL),
        *(
            Library(model, dtype, "cuda:sm_80", _ALL)
            for model in ("vit_tiny_patch16_224", "vit_small_patch16_224")
            for dtype in ("float16", "bfloat16", "tf32")
        ),
        *(
            Library("vit_large_patch16_384", dtype, "cuda:sm_80", _ALL)
            for dtype in ("float16", "bfloat16", "tf32")
        ),
    ),
    "cpu": (
        Library("vit_base_patch16_224", "float32", "cpu", (1, 8), ("eager", "compile"), 8),
        Library("vit_base_patch16_224", "bfloat16", "cpu", (1, 8), ("eager", "compile"), 8),
    ),
}


def run(library: Library, seconds: float, console: Console) -> dict[str, Any]:
    """The results of one library, or the error that ended it."""
    model = timm.create_model(library.model).eval()
    redraw(model, seed=0)
    start = time.perf_counter()
    found: dict[str, Any] = {"library": library.name}
    try:
        with vitc.compile(
            model, batch=library.batches, target=library.target, dtype=library.dtype
        ) as module:
            compiled = time.perf_counter() - start
            if module.place.kind == "cuda":
                model = model.cuda()
            report = bench(
                module, model, batches=library.batches, peers=library.peers, seconds=seconds
            )
            console.print(bench_table(report))
            found |= report.to_json()
            found["compile_seconds"] = round(compiled, 2)
            found["stages"] = {name: round(s, 3) for name, s in module.report.stages}
            if library.profiled:
                found["kernels"] = profile(module, library.profiled)
    except VitcError as error:
        console.print(f"[red]{library.name}: {error}")
        found["error"] = str(error)
    return found


def profile(module: vitc.CompiledModule, batch: int) -> list[dict[str, Any]]:
    """Median microseconds, TFLOP/s and GB/s of each kernel at one batch."""
    port = module.inputs[0]
    x = images(batch, port.shape[1:], seed=9).to(getattr(torch, port.dtype))
    x = x.cuda() if module.place.kind == "cuda" else x
    rows: list[dict[str, Any]] = []
    for step, entry in zip(module.profile(x), module.manifest["steps"], strict=True):
        seconds = step.microseconds / 1e6
        rows.append(
            {
                "kernel": entry["kernel"],
                "name": entry["name"],
                "config": entry["config"],
                "microseconds": round(step.microseconds, 2),
                "tflops": round(step.flops / seconds / 1e12, 2),
                "gigabytes_per_second": round(step.bytes / seconds / 1e9, 1),
            }
        )
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--plan", choices=PLANS, required=True)
    parser.add_argument("--only", default="", help="libraries whose name contains this")
    parser.add_argument("--seconds", type=float, default=1.0, help="per contender and batch")
    parser.add_argument("--output", type=Path, required=True)
    given = parser.parse_args()
    console = Console(width=150)
    results: list[dict[str, Any]] = []
    given.output.parent.mkdir(parents=True, exist_ok=True)
    for library in PLANS[given.plan]:
        if given.only in library.name:
            results.append(run(library, given.seconds, console))
            # After each, so that a run cut short leaves what it had.
            given.output.write_text(json.dumps(results, indent=1) + "\n")
    return 1 if any("error" in result for result in results) else 0


if __name__ == "__main__":
    raise SystemExit(main())
