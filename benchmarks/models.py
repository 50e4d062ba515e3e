"""Compiles, verifies and times models beside torch; keeps rows, a table and charts of them.

    python benchmarks/models.py h100 --limit 450                  # a plan of plans.py, in parts
    python benchmarks/models.py h100 --limit 450 --missing        # what is left of it
    python benchmarks/models.py h100 --limit 450 --only "vit_base_patch16_224 float16" --most 1
        --batches 1,32,256 --peers autotune,autotune-cudnn        # minutes a batch
    python benchmarks/models.py h100 --show                       # table and charts alone

Weights are redrawn, inputs random and distinct, contenders take turns in one process, nothing is
timed that has not verified. Libraries are compiled where they are timed, several at once before the
first is timed: a library that is carried there would be larger than the seconds are long. Results
are merged by library, batch and contender into `<output>/models.json`; each names card, driver,
compilers, torch and date.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict
from pathlib import Path
from typing import Any

import timm
import torch
from plans import PLANS, Library
from results import OURS, Results, charts, markdown
from rich.console import Console
from torch import nn

import vitc
from vitc.bench import BenchReport, bench
from vitc.bench.ceilings import Ceilings, measure_ceilings
from vitc.errors import VitcError
from vitc.report import bench_table
from vitc.runtime.module import Module
from vitc.verify import VerifyReport, images, redraw, verify
from vitc.verify.handle import image_shape

HERE = Path(__file__).resolve().parent
CONSOLE = Console(width=170)
BUILDERS = 4  # compilations at once, each of which runs several compilers


def make_model(name: str) -> nn.Module:
    model = timm.create_model(name).eval()
    redraw(model, seed=0)
    return model


def build(library: Library, folder: Path, jobs: int) -> tuple[Path, float] | str:
    """In a process of its own: the library's file and how long it took, or why there is none."""
    path = folder / f"{library.name.replace(' ', '-').replace(':', '-')}.so"
    start = time.perf_counter()
    try:
        vitc.compile(
            make_model(library.model),
            batch=library.batches,
            target=library.target,
            dtype=library.dtype,
            disable=library.disable,
            output=path,
            jobs=jobs,
        ).close()
    except VitcError as error:
        return str(error)
    return path, time.perf_counter() - start


class Bench:
    """Measures libraries, and adds what it finds to `results`."""

    def __init__(
        self, results: Results, save: Callable[[], None], seconds: float, deadline: float
    ) -> None:
        self.results = results
        self.save = save
        self.seconds = seconds
        self.deadline = deadline
        self.ceilings: dict[str, Ceilings] = {}

    def run(
        self,
        library: Library,
        path: Path,
        compile_seconds: float,
        peers: Sequence[str],
        batches: Sequence[int],
    ) -> None:
        """The batches of one library, while there is time. Raises VitcError where it does not
        verify.
        """
        model = make_model(library.model)
        with vitc.load(path) as module:
            if module.place.kind == "cuda":
                model = model.cuda()
            ceilings = self._ceilings(module, library.dtype)
            proof = verify(module, model, batches=batches, localise=False).require()
            for batch in batches:
                if time.perf_counter() > self.deadline:
                    CONSOLE.print(f"[yellow]no time for {library.name} {batch}: see --missing")
                    return
                for report in self._race(module, model, batch, peers, proof, ceilings):
                    CONSOLE.print(bench_table(report))
                    extra = {"compile_seconds": round(compile_seconds, 2)}
                    self.results.add_rows(rows_of(library, report, extra))
                if batch in library.profiled:
                    self.results.add_profile(profile(library, module, batch, ceilings))
                self.save()

    def _ceilings(self, module: Module, dtype: str) -> Ceilings:
        if dtype not in self.ceilings:
            device = torch.device(module.place.kind)
            self.ceilings[dtype] = measure_ceilings(device, dtype, threads=os.cpu_count() or 1)
        return self.ceilings[dtype]

    def _race(
        self,
        module: Module,
        model: nn.Module,
        batch: int,
        peers: Sequence[str],
        proof: VerifyReport,
        ceilings: Ceilings,
    ) -> list[BenchReport]:
        """One report; where a peer fails, one for each peer that does not, or for vitc alone."""
        try:
            return [
                bench(
                    module,
                    model,
                    batches=[batch],
                    peers=peers,
                    seconds=self.seconds,
                    verified=proof,
                    ceilings=ceilings,
                )
            ]
        except (RuntimeError, VitcError) as error:
            torch.cuda.empty_cache()
            if not peers:
                raise
            CONSOLE.print(f"[red]batch {batch}, {', '.join(peers)}: {error}", markup=True)
        alone = [(peer,) for peer in peers] if len(peers) > 1 else [()]
        found: list[BenchReport] = []
        for one in alone:
            found += self._race(module, model, batch, one, proof, ceilings)
        return found


def rows_of(library: Library, report: BenchReport, extra: dict[str, Any]) -> list[dict[str, Any]]:
    """Flat rows; a peer's has vitc's time in the same run beside its own."""
    machine = report.machine
    about = {
        "model": library.model,
        "dtype": library.dtype,
        "target": library.target,
        "error": report.error,
        "bound": report.bound,
        "graph": report.graph_hash[:16],
        "device": machine.device,
        "driver": machine.driver,
        "cores": machine.cores,
        "load": machine.load,
        **machine.versions,
        "date": machine.date,
    }
    rows: list[dict[str, Any]] = []
    for timing in report.timings:
        ours = timing.contender == OURS
        measured = {
            "ms": round(timing.milliseconds, 4),
            "low": round(timing.low, 4),
            "high": round(timing.high, 4),
            "samples": timing.samples,
            "setup_seconds": round(timing.setup_seconds, 2),
            "images_per_second": round(timing.images_per_second, 1),
            "vitc_ms": round(report.timing(OURS, timing.batch).milliseconds, 4),
        }
        if ours:
            measured |= {"roof": round(report.roofs[timing.batch], 1), **extra}
        key = {"library": library.name, "batch": timing.batch, "contender": timing.contender}
        rows.append({**key, **measured, **about})
    return rows


def profile(library: Library, module: Module, batch: int, ceilings: Ceilings) -> dict[str, Any]:
    """Median times of the kernels; equal ones are one entry with the mean and their number."""
    port = module.inputs[0]
    x = images(batch, image_shape(module), seed=9).to(module.place.kind, getattr(torch, port.dtype))
    groups: dict[tuple[Any, ...], list[float]] = {}
    for step, entry in zip(module.profile(x), module.manifest["steps"], strict=True):
        key = (entry["symbol"], step.flops, step.bytes, entry["kernel"], entry["config"])
        groups.setdefault(key, []).append(step.microseconds)
    kernels: list[dict[str, Any]] = []
    for (_, flops, moved, kernel, config), times in groups.items():
        mean = sum(times) / len(times)
        kernels.append(
            {
                "kernel": kernel,
                "config": config,
                "calls": len(times),
                "us": round(mean, 2),
                "flops": flops,
                "bytes": moved,
                "of_peak": round(1e6 * flops / mean / ceilings.flops, 3),
                "of_copy": round(1e6 * moved / mean / ceilings.bytes, 3),
            }
        )
    total = sum(sum(times) for times in groups.values())
    date = time.strftime("%Y-%m-%d")
    about = {"us": round(total, 1), "ceilings": asdict(ceilings), "date": date}
    return {"library": library.name, "batch": batch, **about, "kernels": kernels}


def wanted_batches(
    library: Library, given: argparse.Namespace, peers: Sequence[str], results: Results
) -> list[int]:
    """The library's batches that were asked for; with --missing, those that lack a contender."""
    asked = [int(b) for b in given.batches.split(",")] if given.batches else library.batches
    batches = [batch for batch in library.batches if batch in asked]
    if not given.missing:
        return batches
    contenders = (OURS, *peers)
    return [
        batch
        for batch in batches
        if any(results.row(library.name, batch, name) is None for name in contenders)
    ]


def build_all(libraries: Sequence[Library], folder: Path) -> list[tuple[Path, float] | str]:
    """Several at once, each with its share of the cores."""
    workers = max(1, min(BUILDERS, len(libraries)))
    jobs = max(1, (os.cpu_count() or 1) // workers)
    with ProcessPoolExecutor(workers, multiprocessing.get_context("spawn")) as pool:
        futures = [pool.submit(build, library, folder, jobs) for library in libraries]
        return [future.result() for future in futures]


def measure(given: argparse.Namespace, results: Results, save: Callable[[], None]) -> int:
    """Builds what is wanted, then measures it until the time is up; how many libraries failed."""
    start, failed = time.perf_counter(), 0
    plan, default_peers, _ = PLANS[given.plan]
    peers = default_peers if given.peers is None else tuple(p for p in given.peers.split(",") if p)
    named = [library for library in plan if given.only in library.name]
    todo = [(library, wanted_batches(library, given, peers, results)) for library in named]
    todo = [(library, batches) for library, batches in todo if batches][: given.most]
    runner = Bench(results, save, given.seconds, start + given.limit)
    with tempfile.TemporaryDirectory(prefix="vitc-bench-") as folder:
        built = build_all([library for library, _ in todo], Path(folder))
        CONSOLE.print(f"{len(built)} libraries built in {time.perf_counter() - start:.0f} s")
        for (library, batches), made in zip(todo, built, strict=True):
            try:
                if isinstance(made, str):
                    raise VitcError(made)
                if time.perf_counter() < runner.deadline:
                    runner.run(library, *made, peers, batches)
                else:
                    CONSOLE.print(f"[yellow]no time for {library.name}: see --missing")
            except VitcError as error:
                CONSOLE.print(f"[red]{library.name}: {error}")
                failed += 1
    CONSOLE.print(f"{time.perf_counter() - start:.0f} s in all, {failed} libraries failed")
    return failed


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("plan", choices=PLANS)
    parser.add_argument("--only", default="", help="libraries whose name contains this")
    parser.add_argument("--batches", default="", help="of those that the plan has: 1,256")
    parser.add_argument("--peers", help="in place of the plan's: eager,graph,compile,autotune,...")
    parser.add_argument("--missing", action="store_true", help="only what the results lack")
    parser.add_argument("--most", type=int, default=100, help="libraries at most")
    parser.add_argument("--limit", type=float, default=1e9, help="seconds; nothing begins later")
    parser.add_argument("--seconds", type=float, default=0.5, help="per contender and batch")
    parser.add_argument("--show", action="store_true", help="measure nothing")
    parser.add_argument("--output", type=Path, help="folder, of the plan by default")
    given = parser.parse_args()
    kept = HERE / PLANS[given.plan][2]
    output: Path = given.output or kept
    results = Results((output if (output / "models.json").exists() else kept) / "models.json")

    def save() -> None:
        # After each batch, so that a run cut short leaves what it had.
        results.save(output / "models.json")

    failed = 0 if given.show else measure(given, results, save)
    (output / "models.md").write_text(markdown(results))
    try:
        for path in charts(results, output):
            print(path)
    except VitcError as error:  # without matplotlib; where it is, --show draws them
        CONSOLE.print(f"[yellow]no charts: {error}")
    return min(failed, 1)


if __name__ == "__main__":
    raise SystemExit(main())
