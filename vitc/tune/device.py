"""What a tuner measures on: the card's name, the CUDA release, and how long kernels take there."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch

from vitc.codegen.kernel import Target
from vitc.codegen.records import toolkit_name
from vitc.codegen.toolchain import Toolchain
from vitc.devices import nvidia_devices
from vitc.errors import DeviceError, InputError

Run = Callable[[], None]

ROUNDS = 7
MILLISECONDS = 8.0  # of each configuration in a round
MOST_LAUNCHES = 600  # of kernels in a graph
FAR_BEHIND = 1.5  # times the best


@dataclass(frozen=True)
class TuningDevice:
    """A card, and how to time on it: `times(runs, launches)` gives microseconds per kernel of each
    run, which launches so many kernels.
    """

    name: str
    toolkit: str
    times: Callable[[Mapping[str, Run], int], Mapping[str, float]]


def find_device(target: Target, toolchain: Toolchain) -> TuningDevice:
    """The card of this machine that `target` is for. Raises InputError, DeviceError."""
    if target.device == "cpu":
        raise InputError(
            f"there is nothing to tune for '{target.name}': its kernels have nothing to choose",
            hint="tune for a GPU: --target cuda:sm_90a",
        )
    if target.device == "emulated":
        raise InputError(
            f"'{target.name}' runs on the CPU, whose times say nothing about the card",
            hint=f"tune for {target.name.removesuffix(':emulated')}, on that card",
        )
    isa, *others = target.isas
    if others:
        raise InputError(
            f"'{target.name}' is for several architectures, and one is tuned at a time",
            hint="tune for each on its card; the records serve libraries for several as well",
        )
    devices = nvidia_devices()
    device = next(iter(devices.found), None)
    if device is None:
        raise DeviceError(
            f"tuning measures kernels on the card that they are for, and there is no NVIDIA GPU "
            f"here: {devices.reason}",
            hint=f"run it where the card is; without, vitc uses the times that it comes with, and "
            f"a cost model{f' ({devices.fix})' if devices.fix else ''}",
        )
    if device.arch != isa.removesuffix("a"):
        raise DeviceError(
            f"'{target.name}' cannot be tuned on {device.name}, which is {device.arch}",
            hint="times of one architecture say little about another",
        )
    return TuningDevice(device.name, toolkit_name(toolchain.compiler("cuda").version), cuda_times)


def cuda_times(runs: Mapping[str, Run], launches: int) -> dict[str, float]:
    """Medians over rounds in which all runs take turns, so that all see the same clocks. Each run
    is captured, again and again for some milliseconds, in a CUDA graph of its own.
    """
    graphs = {name: _capture(run, launches) for name, run in runs.items()}

    def time(name: str) -> float:
        graph, repeats = graphs[name]
        return _elapsed(graph.replay) * 1e3 / (repeats * launches)

    # The first round warms up, and shows which are far behind and need no more.
    rough = {name: time(name) for name in graphs}
    near = [name for name, us in rough.items() if us < FAR_BEHIND * min(rough.values())]
    found: dict[str, list[float]] = {name: [] for name in near}
    for number in range(ROUNDS):
        for name in near[:: -1 if number % 2 else 1]:
            found[name].append(time(name))
    return {**rough, **{name: statistics.median(times) for name, times in found.items()}}


def _capture(run: Run, launches: int) -> tuple[Any, int]:
    run()  # loads the kernels, which a capture may not do
    milliseconds = max(1e-3, _elapsed(run))
    repeats = max(1, min(int(MILLISECONDS / milliseconds), MOST_LAUNCHES // launches))
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for _ in range(repeats):
            run()
    return graph, repeats


def _elapsed(run: Run) -> float:
    """Milliseconds between two events around it."""
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end)
