"""What a benchmark measured, as data; `vitc.report` shows it."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from vitc.bench.ceilings import Ceilings
from vitc.errors import VitcError

OURS = "vitc"


class BenchmarkRefused(VitcError):
    """Nothing is timed that does not compute the same."""


@dataclass(frozen=True)
class Timing:
    """One contender at one batch.

    milliseconds: median of `samples` runs. low, high: 10th and 90th percentile.
    setup_seconds: from nothing to its first result at this batch, such as torch.compile's own
        compilation; 0 where there is nothing to set up.
    """

    contender: str
    batch: int
    milliseconds: float
    low: float
    high: float
    samples: int
    setup_seconds: float = 0.0

    @property
    def images_per_second(self) -> float:
        return 1e3 * self.batch / self.milliseconds

    @property
    def spread(self) -> float:
        """90th over 10th percentile; 1 on a quiet machine."""
        return self.high / self.low

    @staticmethod
    def of(contender: str, batch: int, seconds: Sequence[float], setup: float) -> Timing:
        """From single runs, in seconds; at least one."""
        times = sorted(1e3 * value for value in seconds)
        last = len(times) - 1
        return Timing(
            contender=contender,
            batch=batch,
            milliseconds=statistics.median(times),
            low=times[round(0.1 * last)],
            high=times[round(0.9 * last)],
            samples=len(times),
            setup_seconds=setup,
        )


@dataclass(frozen=True)
class Machine:
    """Where it was measured.

    device: name of the CPU or GPU. features: instruction sets of the CPU that kernels differ by.
    driver: of the GPU, or "". load: average over the last minute when the benchmark began; other
        work on the same cores disturbs some contenders more than others. versions: of the packages
        and of the library's compiler.
    """

    device: str
    features: tuple[str, ...]
    cores: int
    driver: str
    load: float
    system: str
    versions: dict[str, str]
    date: str


@dataclass(frozen=True)
class BenchReport:
    """A benchmark of one verified library.

    error, bound: of the verification that came first, at the benchmarked batches too.
    roofs: images per second by batch if each kernel ran at one of the ceilings.
    """

    model: str
    target: str
    dtype: str
    threads: int
    graph_hash: str
    error: float
    bound: float
    machine: Machine
    timings: tuple[Timing, ...]
    ceilings: Ceilings
    roofs: dict[int, float]

    @property
    def batches(self) -> tuple[int, ...]:
        return tuple(dict.fromkeys(timing.batch for timing in self.timings))

    @property
    def contenders(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(timing.contender for timing in self.timings))

    def timing(self, contender: str, batch: int) -> Timing:
        """Raises KeyError when it was not measured."""
        for timing in self.timings:
            if (timing.contender, timing.batch) == (contender, batch):
                return timing
        raise KeyError((contender, batch))

    @property
    def noisiest(self) -> Timing:
        """The timing with the widest spread."""
        return max(self.timings, key=lambda timing: timing.spread)

    def speedup(self, peer: str, batch: int) -> float:
        """How many times as fast as the peer the library is."""
        return self.timing(peer, batch).milliseconds / self.timing(OURS, batch).milliseconds

    def to_json(self) -> dict[str, Any]:
        rows = [
            {**asdict(timing), "images_per_second": timing.images_per_second}
            for timing in self.timings
        ]
        peers = [name for name in self.contenders if name != OURS]
        speedups = {
            peer: {str(batch): self.speedup(peer, batch) for batch in self.batches}
            for peer in peers
        }
        return {**asdict(self), "timings": rows, "speedups": speedups}
