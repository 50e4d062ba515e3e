"""How long one run takes. The one place that differs between devices."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter
from typing import Protocol

import torch

from vitc.errors import DeviceError


class Clock(Protocol):
    """Times one call, to the end of all work that it started on the device."""

    def __call__(self, run: Callable[[], object]) -> float:
        """Seconds."""
        ...


def cpu_clock(run: Callable[[], object]) -> float:
    """Seconds by the wall: on a CPU a call returns when its work is done."""
    start = perf_counter()
    run()
    return perf_counter() - start


def cuda_clock(run: Callable[[], object]) -> float:
    """Seconds on the GPU between two events: the mean of a few calls in a row, so that the host's
    work for one overlaps the device's for the one before, as it does in a server.
    """
    calls = 4
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    start.record()
    for _ in range(calls):
        run()
    end.record()
    end.synchronize()
    return start.elapsed_time(end) / 1000 / calls


_CLOCKS: dict[str, Clock] = {"cpu": cpu_clock, "cuda": cuda_clock}


def clock_for(device: torch.device) -> Clock:
    """The clock of a device type. Raises DeviceError where there is none."""
    if device.type not in _CLOCKS:
        raise DeviceError(f"nothing can be timed on '{device.type}'; known: {', '.join(_CLOCKS)}")
    return _CLOCKS[device.type]
