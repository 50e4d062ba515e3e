"""Tuning: for each choice that a model's kernels have, all configurations are compiled, checked
against each other, timed on the card, and recorded for the compilations to come.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

from vitc.codegen import records
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.codegen.toolchain import Toolchain
from vitc.compiler import optimised_graph, toolchain_of
from vitc.errors import InputError, VitcError
from vitc.ir.graph import Graph
from vitc.ops import Move
from vitc.options import CompileOptions, check_model, checked_options
from vitc.tune.device import TuningDevice, find_device
from vitc.tune.trial import AGREEMENT, Trial, Work, build_trial, difference

Progress = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Tuned:
    """One choice. us: microseconds by configuration; wrong: why others were turned down."""

    work: Work
    us: dict[str, float]
    wrong: dict[str, str] = field(default_factory=dict[str, str])

    @property
    def default(self) -> str:
        """What the cost model prefers."""
        return self.work.choice.names[0]

    @property
    def best(self) -> str:
        return min(self.us, key=lambda name: self.us[name])

    @property
    def gain(self) -> float:
        """How many times as fast the best is as the default."""
        return self.us[self.default] / self.us[self.best]


@dataclass(frozen=True)
class TuneReport:
    """What was measured, on which card, and the file that now holds it. known: choices whose times
    were there already.
    """

    device: str
    target: str
    toolkit: str
    path: Path
    tuned: tuple[Tuned, ...]
    known: int

    def to_json(self) -> dict[str, Any]:
        rows = [
            {
                "kernel": item.work.choice.kernel,
                "problem": item.work.choice.problem,
                "size": item.work.choice.size,
                "batch": item.work.batch,
                "default": item.default,
                "best": item.best,
                "gain": item.gain,
                "us": item.us,
                "wrong": item.wrong,
            }
            for item in self.tuned
        ]
        about = {"device": self.device, "target": self.target, "toolkit": self.toolkit}
        return {**about, "path": str(self.path), "known": self.known, "tuned": rows}


def tune(
    model: Any,
    *,
    batch: int | Sequence[int],
    target: str | None = None,
    dtype: str | None = None,
    image_size: int | tuple[int, int] | None = None,
    features: bool = False,
    disable: Collection[str] = (),
    only: str = "",
    force: bool = False,
    path: str | os.PathLike[str] | None = None,
    jobs: int | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """Measures what `vitc.compile` with these arguments will choose among; see there for them.

    only: choices whose kernel and problem, as records name them, contain this, such as "gather" or
    "768x3072"; all by default. force: measure again what is recorded. path: the record file; None
    is the user's, which compilations read.

    Raises InputError where there is nothing to tune, DeviceError without the card, and what
    compile() raises.
    """
    options = checked_options(batch, target, dtype, None, None, "embedded", disable, None, jobs)
    check_model(model, image_size, None)
    toolchain = toolchain_of(options)
    device = find_device(find_target(options.target), toolchain)
    _, graph = optimised_graph(model, options, image_size=image_size, features=features)
    return tune_graph(
        graph,
        options,
        toolchain=toolchain,
        device=device,
        only=only,
        force=force,
        path=None if path is None else Path(path),
        progress=progress,
    )


def tune_graph(
    graph: Graph,
    options: CompileOptions,
    *,
    toolchain: Toolchain,
    device: TuningDevice | None = None,
    only: str = "",
    force: bool = False,
    path: Path | None = None,
    progress: Progress | None = None,
) -> TuneReport:
    """As `tune`, for an optimised graph. device: None takes the card of this machine."""
    target = find_target(options.target, options.batches)
    device = device or find_device(target, toolchain)
    path = path or records.user_file(device.name, target.isas[0], device.toolkit)
    every = [work for work in choices(graph, options) if only in work.choice.key]
    if only and not every:
        raise InputError(
            f"no choice of this model is named like '{only}'",
            hint="name a part of a kernel or problem, as `vitc tune --json` lists them",
        )
    todo = [work for work in every if force or not _recorded(path, work)]
    tuned: list[Tuned] = []
    about = {
        "device": device.name,
        "arch": target.isas[0],
        "toolkit": device.toolkit,
        "date": date.today().isoformat(),
    }
    for i, (work, library) in enumerate(_libraries(todo, options, toolchain)):
        if progress is not None:
            progress("tune", i, len(todo))
        tuned.append(measure(work, library, device))
        _store(path, about, tuned[-1])
    if progress is not None:
        progress("tune", len(todo), len(todo))
    return TuneReport(
        device.name, target.name, device.toolkit, path, tuple(tuned), len(every) - len(todo)
    )


def choices(graph: Graph, options: CompileOptions) -> list[Work]:
    """Every distinct choice of the graph's kernels, for each batch that is tuned for."""
    found: dict[str, Work] = {}
    for batch in options.batches:
        target = find_target(options.target, (batch,))
        for call in select(graph, target).calls:
            choice = call.kernel.choice(call, batch)
            if choice is not None and len(choice.names) > 1:
                stored_by = graph.producers[call.outputs[0].value].op
                moved = stored_by.map if isinstance(stored_by, Move) else None
                found.setdefault(choice.key, Work(call, choice, batch, target, moved))
    return list(found.values())


def _libraries(
    todo: Sequence[Work], options: CompileOptions, toolchain: Toolchain
) -> Iterator[tuple[Work, Path]]:
    """Each with the library of its trial. None is built while another is measured: a thread that
    renders takes Python's lock for milliseconds, between an event and what it should time.
    """
    with tempfile.TemporaryDirectory(prefix="vitc-tune-") as folder:
        for i, work in enumerate(todo):
            path = Path(folder, f"{i}.so")
            build_trial(work, options, toolchain, path)
            yield work, path
            path.unlink()


def measure(work: Work, library: Path, device: TuningDevice) -> Tuned:
    """Times the configurations that agree with the preferred one, which must run."""
    trial = Trial(work, library)
    try:
        default, *others = work.choice.names
        expected = trial.results(default)
        wrong: dict[str, str] = {}
        for name in others:
            try:
                error = difference(trial.results(name), expected)
            except VitcError as problem:
                wrong[name] = problem.message
                continue
            if not error <= AGREEMENT[work.call.site.results[0].dtype]:
                wrong[name] = f"differs from {default} by {error:.1e}"
        right = [name for name in work.choice.names if name not in wrong]
        times = device.times({name: trial.runner(name) for name in right}, work.copies)
    finally:
        trial.close()
    return Tuned(work, {name: round(times[name], 3) for name in right}, wrong)


def _recorded(path: Path, work: Work) -> bool:
    """Whether the file has times of this very choice, with the kernel as it is."""
    if not path.exists():
        return False
    record, choice = records.read(path), work.choice
    if record["kernels"].get(choice.kernel) != records.kernel_digest(choice.headers):
        return False
    wanted = (choice.kernel, choice.problem, choice.size)
    return any((e["kernel"], e["problem"], e["size"]) == wanted for e in record["problems"])


def _store(path: Path, about: dict[str, str], tuned: Tuned) -> None:
    choice = tuned.work.choice
    digest = records.kernel_digest(choice.headers)
    measured = records.Measured(choice.kernel, choice.problem, choice.size, tuned.us)
    records.store(path, about, {choice.kernel: digest}, [measured])
