"""`bench`: times a library beside its peers, after it has verified."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, cast

import torch
from torch import Tensor, nn

from vitc.bench.ceilings import Ceilings, measure_ceilings
from vitc.bench.clock import Clock, clock_for
from vitc.bench.contenders import Features, Run, forget_compiled, peer, torch_settings
from vitc.bench.machine import describe_machine
from vitc.bench.results import OURS, BenchmarkRefused, BenchReport, Timing
from vitc.verify import VerifyReport, images, relative_error, verify
from vitc.verify.handle import Compiled, device_of, image_shape, max_batch, torch_dtype

Progress = Callable[[str, int, int], None]

ROTATION = 4  # different inputs that take turns, so that none stays in a cache alone
AGREEMENT = 0.05  # relative L2 within which a peer must agree, or it runs another model


def bench(
    module: Compiled,
    model: nn.Module,
    *,
    batches: Sequence[int] | None = None,
    peers: Sequence[str] | None = None,
    threads: int | None = None,
    seconds: float = 3.0,
    rounds: int = 5,
    verified: VerifyReport | None = None,
    features: bool | None = None,
    ceilings: Ceilings | None = None,
    seed: int = 0,
    progress: Progress | None = None,
) -> BenchReport:
    """Times the library and each peer at each batch, all in this process on the same inputs.

    module, model: a library and the model it came from, with the same weights.
    batches: sizes to time; None takes 1 and the library's largest.
    peers: names of vitc.bench.PEERS, run in the library's dtype; None takes eager torch and
        torch.compile, on a GPU also eager torch in a CUDA graph.
    threads: CPU threads of all contenders; None means all that this process may use.
    seconds: that each contender runs at each batch, in `rounds` slices that take turns, so that a
        machine that slows down or is disturbed slows all of them.
    features: the library is of `forward_features`; None takes what the manifest says.
    verified: a passed report of this very library; None verifies first, at these batches too.
    ceilings: of the device in the library's dtype; None measures them.

    Raises BenchmarkRefused when the library does not verify, the report is another library's, or a
    peer computes something else. InputError for an unknown peer, DeviceError without a clock.
    """
    sizes = tuple(batches or sorted({1, max_batch(module)}))
    _check_sizes(sizes, max_batch(module))
    report = verified
    if report is None:
        report = verify(
            module,
            model,
            features=features,
            batches=sizes,
            localise=False,
            seed=seed,
            progress=progress,
        )
    _check_verified(module, report, sizes)
    device = device_of(module)
    names = default_peers(device) if peers is None else peers
    count = threads or len(os.sched_getaffinity(0))
    clock = clock_for(device)
    machine = describe_machine(module.manifest)
    inner = bool(module.manifest.get("features")) if features is None else features
    whole = Features(model) if inner else model
    timings: list[Timing] = []
    with torch_settings(count, str(module.manifest["dtype"])):
        for index, batch in enumerate(sizes):
            racers = _line_up(module, whole, names, batch, count, seed)
            _race(racers, clock, seconds, rounds, progress, f"batch {batch}")
            timings += [Timing.of(r.name, batch, r.samples, r.setup) for r in racers]
            if progress is not None:
                progress("benchmark", index + 1, len(sizes))
    ceilings = ceilings or measure_ceilings(
        device, str(module.manifest["dtype"]), threads=count, seconds=min(0.5, seconds)
    )
    return BenchReport(
        model=report.name,
        target=report.target,
        dtype=report.dtype,
        threads=count,
        graph_hash=report.graph_hash,
        error=report.error,
        bound=report.bound,
        machine=machine,
        timings=tuple(timings),
        ceilings=ceilings,
        roofs={size: ceilings.roof(module.manifest, size) for size in sizes},
    )


def default_peers(device: torch.device) -> tuple[str, ...]:
    """What a user would otherwise pick."""
    return ("eager", "graph", "compile") if device.type == "cuda" else ("eager", "compile")


def _check_sizes(sizes: Sequence[int], largest: int) -> None:
    wrong = [size for size in sizes if not 1 <= size <= largest]
    if wrong:
        raise BenchmarkRefused(f"batch {wrong[0]} is not in 1..{largest}, what the library takes")


def _check_verified(module: Compiled, report: VerifyReport, sizes: Sequence[int]) -> None:
    if not report.passed:
        reasons = "; ".join(map(str, report.failures))
        raise BenchmarkRefused(
            f"'{report.name}' does not verify, so that its speed means nothing: {reasons}",
            hint="run `vitc verify` to see which op differs",
        )
    if not report.graph_hash or report.graph_hash != module.manifest.get("graph_hash"):
        raise BenchmarkRefused("the verification report is of another library")
    missing = sorted(set(sizes) - set(report.batches))
    if missing:
        raise BenchmarkRefused(f"the report verified batches {report.batches}, not {missing}")


@dataclass
class _Racer:
    """One contender with its inputs; `samples` are seconds of single runs."""

    name: str
    run: Run
    inputs: Sequence[Tensor]
    setup: float = 0.0
    per_round: int = 1
    turns: int = 0
    samples: list[float] = field(default_factory=list[float])

    def once(self) -> Tensor:
        self.turns += 1
        return self.run(self.inputs[self.turns % len(self.inputs)])


def _line_up(
    module: Compiled, model: nn.Module, peers: Sequence[str], batch: int, threads: int, seed: int
) -> list[_Racer]:
    """All contenders, each having computed the first input, with results that agree."""
    device, shape = device_of(module), image_shape(module)
    drawn = [images(batch, shape, seed + 100 * (i + 1)).to(device) for i in range(ROTATION)]
    ours = [x.to(torch_dtype(module.inputs[0].dtype)) for x in drawn]
    context: Any = module.new_context(threads)
    racers = [_Racer(OURS, cast(Run, context), ours)]
    dtype = torch_dtype(str(module.manifest["dtype"]))
    forget_compiled()
    for name in peers:
        start = perf_counter()
        run = peer(name, model, dtype, device)
        cast_inputs = [x.to(dtype) for x in drawn]
        run(cast_inputs[0])
        racers.append(_Racer(name, run, cast_inputs, setup=perf_counter() - start))
    expected = racers[0].run(ours[0])
    for racer in racers[1:]:
        error = relative_error(racer.run(racer.inputs[0]), expected)
        if error > AGREEMENT:
            raise BenchmarkRefused(
                f"peer '{racer.name}' differs from the library by {error:.1e} at batch {batch}: "
                "it runs another model"
            )
    return racers


def _race(
    racers: list[_Racer],
    clock: Clock,
    seconds: float,
    rounds: int,
    progress: Progress | None,
    what: str,
) -> None:
    """Fills `samples`: each round every contender runs its slice, and the order rotates."""
    for racer in racers:
        first = [clock(racer.once) for _ in range(3)]
        racer.per_round = max(1, int(seconds / rounds / max(min(first), 1e-6)))
    for turn in range(rounds):
        if progress is not None:
            progress(what, turn, rounds)
        shift = turn % len(racers)
        for racer in racers[shift:] + racers[:shift]:
            racer.once()  # brings its weights and code back into the caches
            racer.samples += [clock(racer.once) for _ in range(racer.per_round)]
    if progress is not None:
        progress(what, rounds, rounds)
