"""Chooses configurations of kernels by the time of the whole model.

    python benchmarks/in_model.py vit_base_patch16_224 --batch 1 --limit 240 --output in_model.json

`vitc tune` times a kernel alone. In a model its neighbours overlap with it: the next kernel's
blocks start beside its last ones, and its own weights come while the kernel before ends. So here
each configuration of a choice is compiled into the whole model, all else as it is, and the
libraries take turns. Choice by choice, most work first, the fastest configuration is kept where it
gains more than the noise, by which two copies of one library differ. In the end all that was kept
runs against the default, and the default with other flags of the compiler (`--flags`) and without a
CUDA graph.

The default is what compile() takes here, by the user's records first: set VITC_CACHE to an empty
folder to begin with what the package ships.

Writes `--output` after each choice, and adds to `--record` (beside it, by default), as
vitc/codegen/records.py reads them, the whole model's times of each choice whose fastest is the one
that was kept. `--record` alone adds those of an output of before. A file of them
beside the package's h100.json comes first if its name sorts before that, as `h100-in-model.json`
does; the package ships none at present.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from datetime import date
from pathlib import Path
from typing import Any

import timm
import torch
from torch import Tensor
from variants import Libraries, Site, Variant, describe, sites

from vitc.bench.clock import Clock, clock_for
from vitc.bench.machine import describe_machine
from vitc.codegen import records
from vitc.codegen.records import Measured
from vitc.codegen.targets import find_target
from vitc.compiler import optimised_graph
from vitc.devices import nvidia_devices
from vitc.errors import VitcError
from vitc.options import CompileOptions, checked_options
from vitc.runtime.module import Module
from vitc.tune.trial import AGREEMENT
from vitc.verify import images, redraw, relative_error
from vitc.verify.handle import device_of, image_shape, torch_dtype

ROTATION = 4  # inputs that take turns
ROUNDS = 15
LEAST = 1e-3  # of the model's time that a configuration must gain
FINAL = 0.2  # of the seconds, for what runs in the end

Run = Callable[[], Any]


class Loaded:
    """A library on the device, which runs on inputs that take turns. graph: as one CUDA graph."""

    def __init__(self, path: Path, inputs: Sequence[Tensor], *, graph: bool = True) -> None:
        self.module = Module.open(path, verify=False)
        self.context = self.module.new_context()
        self.inputs, self.turns = inputs, itertools.cycle(inputs)
        self.last = 0 if graph else len(self.module.manifest["steps"]) - 1

    def __call__(self) -> Tensor:
        x = next(self.turns)
        if not self.last:
            return self.context(x)
        results = self.context.run_steps([x], (0, self.last))
        return self.context.run_steps([x], (self.last, self.last + 1), results)[0]

    def results(self) -> Tensor:
        """Of all inputs, computed without a pause between them."""
        self.turns = itertools.cycle(self.inputs)
        return torch.cat([self() for _ in self.inputs])

    def close(self) -> None:
        self.context.close()
        self.module.close()


def race(runs: Mapping[str, Run], clock: Clock, seconds: float) -> dict[str, list[float]]:
    """Microseconds of each run, a median for each of ROUNDS rounds, in which all take turns in an
    order that changes.
    """
    counts: dict[str, int] = {}
    for name, run in runs.items():
        clock(run)  # captures graphs
        start = time.perf_counter()
        clock(run)
        counts[name] = max(2, int(seconds / ROUNDS / (time.perf_counter() - start)))
    found: dict[str, list[float]] = {name: [] for name in runs}
    for turn in range(ROUNDS):
        for name in random.Random(turn).sample(list(runs), len(runs)):
            clock(runs[name])  # brings its weights and code back into the caches
            times = [1e6 * clock(runs[name]) for _ in range(counts[name])]
            found[name].append(statistics.median(times))
    return found


@dataclass(frozen=True)
class Standing:
    """A race beside two copies of one library. base: microseconds of these; noise: what they differ
    by; slower: each run than their mean. Medians over the rounds, in which all saw the same clocks.
    """

    base: float
    noise: float
    slower: dict[str, float]

    @staticmethod
    def of(rounds: Mapping[str, list[float]], one: str, two: str) -> Standing:
        """Raises VitcError where a copy did not run."""
        if not {one, two} <= rounds.keys():
            raise VitcError(f"'{one}' and '{two}' must run, to compare others with")
        base = [(x + y) / 2 for x, y in zip(rounds[one], rounds[two], strict=True)]
        slower = {
            name: statistics.median(x - y for x, y in zip(times, base, strict=True))
            for name, times in rounds.items()
        }
        noise = abs(slower[one] - slower[two])
        return Standing(statistics.median(base), noise, slower)

    def us(self) -> dict[str, float]:
        """Microseconds by name, fastest first."""
        order = sorted(self.slower, key=lambda name: self.slower[name])
        return {name: round(self.base + self.slower[name], 2) for name in order}


@dataclass
class Result:
    """One choice. us: microseconds of the whole model by configuration; before: what it had until
    then; noise: what had to be gained; failed: why configurations have no time.
    """

    kernel: str
    problem: str
    size: int
    calls: int
    default: str
    before: str
    chosen: str
    noise: float
    us: dict[str, float]
    failed: dict[str, str]

    def __str__(self) -> str:
        lines = [f"{self.kernel} {self.problem}, {self.size} rows, {self.calls} calls:"]
        for name, us in self.us.items():
            labels = {"default": self.default, "kept": self.chosen}
            marks = ", ".join(label for label, other in labels.items() if other == name)
            lines.append(f"  {name:28} {us:9.2f} us {us - self.us[self.before]:+8.2f}  {marks}")
        lines += [f"  {name:28} failed: {why}" for name, why in self.failed.items()]
        return "\n".join((*lines, f"  noise {self.noise:.2f} us"))


@dataclass
class Search:
    """Coordinate descent over choices. kept: what differs from the default, by key of the choice.
    noises: microseconds that two copies of a library differed by in each race.
    """

    libraries: Libraries
    clock: Clock
    inputs: Sequence[Tensor]
    expected: Tensor
    seconds: float
    kept: dict[str, str] = field(default_factory=dict[str, str])
    noises: list[float] = field(default_factory=list[float])
    results: list[Result] = field(default_factory=list[Result])

    def settle(self, site: Site) -> Result:
        """Times all configurations of a choice, and keeps the best if it gains enough. Raises
        VitcError where what was kept before does not run any more.
        """
        choice = site.choice
        before = self.kept.get(choice.key, site.default)
        again = f"{before} again"
        wanted: dict[str, Variant] = {before: (dict(self.kept), ())}
        for name in choice.names:
            wanted.setdefault(name, ({**self.kept, choice.key: name}, ()))
        built = self.libraries.build(wanted)
        rounds, failed = self.race({**built, again: built[before]})
        standing = Standing.of(rounds, before, again)
        self.noises.append(standing.noise)
        # Two copies may happen to agree.
        noise = max(standing.noise, statistics.median(self.noises), LEAST * standing.base)
        best = min(standing.slower.keys() - {again}, key=lambda name: standing.slower[name])
        chosen = best if standing.slower[best] < -noise else before
        if chosen != before:
            self.kept[choice.key] = chosen
        about = (choice.kernel, choice.problem, choice.size, site.calls, site.default, before)
        self.results.append(Result(*about, chosen, round(noise, 2), standing.us(), failed))
        return self.results[-1]

    def final(self, flags: Sequence[str]) -> dict[str, Any]:
        """All that was kept against the default, both twice, and the default in other ways."""
        wanted: dict[str, Variant] = {"kept": (self.kept, ())}
        wanted |= {f"default {flag}": ({}, (flag,)) for flag in flags}
        built = self.libraries.build(wanted)
        default = self.libraries.default
        twice = {"default": default, "default again": default, "kept again": built["kept"]}
        rounds, failed = self.race({**twice, **built}, without_graph="default without graph")
        standing = Standing.of(rounds, "default", "default again")
        us, noise = standing.us(), round(standing.noise, 2)
        return {"kept": self.kept, "us": us, "noise": noise, "failed": failed}

    def race(
        self, paths: Mapping[str, Path | str], without_graph: str = ""
    ) -> tuple[dict[str, list[float]], dict[str, str]]:
        """Rounds of those that run and agree, and what is wrong with the others. without_graph:
        what to call the default without one, if it is to run.
        """
        failed: dict[str, str] = {}
        runs: dict[str, Run] = {}
        given = dict(paths)
        if without_graph:
            given[without_graph] = self.libraries.default
        with ExitStack() as stack:
            for name, path in given.items():
                try:
                    runs[name] = self._checked(path, name != without_graph, stack)
                except (VitcError, RuntimeError) as error:
                    failed[name] = describe(error)
            return race(runs, self.clock, self.seconds), failed

    def _checked(self, path: Path | str, graph: bool, stack: ExitStack) -> Run:
        if isinstance(path, str):
            raise VitcError(path)
        loaded = Loaded(path, self.inputs, graph=graph)
        stack.callback(loaded.close)
        # Two libraries may differ by twice what two kernels may: each errs on its own.
        error = relative_error(loaded.results(), self.expected)
        if not error <= 2 * AGREEMENT[self.libraries.options.dtype]:
            raise VitcError(f"differs from the default by {error:.1e}")
        return loaded


def save_record(
    results: Sequence[Result], path: Path, about: Mapping[str, Any], calls: int
) -> None:
    """Choices that at least so many calls have. about: of the record, and the kernels' digests."""
    measured: list[Measured] = []
    for r in results:
        us = {name: time for name, time in r.us.items() if name != f"{r.before} again"}
        if r.calls >= calls and min(us, key=lambda name: us[name]) == r.chosen:
            measured.append(Measured(r.kernel, r.problem, r.size, us))
    if measured:
        digests = {m.kernel: about["kernels"][m.kernel] for m in measured}
        head = {key: about[key] for key in ("device", "arch", "toolkit", "date")}
        records.store(path, {**head, "times": "of whole models"}, digests, measured)


def about_records(search: Search, every: Sequence[Site]) -> dict[str, Any]:
    """What a record says of where and with which kernels it was measured."""
    target, toolchain = search.libraries.target, search.libraries.toolchain
    device, toolkit = target.name, ""
    if target.device == "cuda":
        device = nvidia_devices().found[0].name
        toolkit = records.toolkit_name(toolchain.compiler("cuda").version)
    return {
        "device": device,
        "arch": target.isas[0],
        "toolkit": toolkit,
        "date": date.today().isoformat(),
        "kernels": {s.choice.kernel: records.kernel_digest(s.choice.headers) for s in every},
    }


def prepare(
    given: argparse.Namespace, options: CompileOptions, folder: Path
) -> tuple[Search, dict[str, Any]]:
    """Compiles the default and draws inputs; also returns what describes the machine."""
    model = timm.create_model(given.model).eval()
    redraw(model, seed=0)
    imported, graph = optimised_graph(model, options, image_size=given.image_size)
    libraries = Libraries(graph, imported.state, options, folder)
    with Module.open(libraries.default, verify=False) as module:
        machine = asdict(describe_machine(module.manifest))
        device, dtype = device_of(module), torch_dtype(module.inputs[0].dtype)
        shape = image_shape(module)
    seeds = range(100, 100 * (ROTATION + 1), 100)
    inputs = [images(options.max_batch, shape, seed).to(device, dtype) for seed in seeds]
    default = Loaded(libraries.default, inputs)
    expected = default.results()
    default.close()
    return Search(libraries, clock_for(device), inputs, expected, given.seconds), machine


def measure(given: argparse.Namespace, folder: Path) -> int:
    """Settles choice after choice while there is time; 1 where something did not run."""
    start = time.perf_counter()
    options = checked_options(
        given.batch, given.target, given.dtype, None, None, "embedded", (), None, None
    )
    if len(find_target(options.target).isas) > 1:
        raise SystemExit(f"{options.target}: one architecture at a time")
    search, machine = prepare(given, options, folder)
    every = sites(search.libraries.selection.calls, given.batch, given.only, given.every)
    what = f"{given.model} {options.dtype.value}, batch {given.batch}"
    about = about_records(search, every)
    report: dict[str, Any] = {"what": what, "target": options.target, "machine": machine}
    report["record"] = about
    output: Path = given.output
    record: Path = given.record or output.with_name(f"{output.stem}-record.json")
    output.parent.mkdir(parents=True, exist_ok=True)

    def elapsed() -> float:
        return round(time.perf_counter() - start, 1)

    def save() -> None:
        report["choices"] = [asdict(result) for result in search.results]
        report["left_out"] = [site.choice.key for site in every[len(search.results) :]]
        report["seconds"] = elapsed()
        output.write_text(json.dumps(report, indent=1))
        save_record(search.results, record, about, given.calls)

    print(f"{what}: {len(every)} choices; {elapsed()} s", flush=True)
    slowest = 0.0
    try:
        for site in every:
            began = elapsed()
            if began + slowest > (1 - FINAL) * given.limit:
                break
            print(search.settle(site), flush=True)
            slowest = max(slowest, elapsed() - began)
            save()
        report["final"] = search.final(given.flags)
        print(json.dumps(report["final"], indent=1))
    except (VitcError, RuntimeError) as error:  # of the device: nothing runs any more
        report["error"] = describe(error)
        print(report["error"])
    save()
    print(f"left out: {report['left_out']}; {report['seconds']} s; {output}")
    return int("error" in report)


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("model", help="timm model name, or an output of before")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--dtype", default="float16")
    parser.add_argument("--target", default="cuda:sm_90a")
    parser.add_argument("--image-size", type=int, help="the model's own by default")
    parser.add_argument("--only", default="", help="choices with one of these words: 768x,gather")
    parser.add_argument("--every", action="store_true", help="tiles that no tuner tries, too")
    parser.add_argument("--limit", type=float, default=240, help="seconds in all")
    parser.add_argument("--seconds", type=float, default=0.3, help="of each library in a race")
    parser.add_argument(
        "--flags",
        action="append",
        default=[],
        help="of the compiler, with which the default is timed, too: --flags=-DVITC_OVERLAP=0",
    )
    parser.add_argument("--output", type=Path, default=Path("in_model.json"))
    parser.add_argument("--record", type=Path, help="record file to add to")
    parser.add_argument("--calls", type=int, default=1, help="of a choice, at least, to record it")
    given = parser.parse_args()
    if given.model.endswith(".json"):
        report = json.loads(Path(given.model).read_text())
        save_record(
            [Result(**r) for r in report["choices"]], given.record, report["record"], given.calls
        )
        return 0
    with tempfile.TemporaryDirectory(prefix="vitc-in-model-") as folder:
        return measure(given, Path(folder))


if __name__ == "__main__":
    raise SystemExit(main())
