"""What the device can do at most: a large product and a large copy by torch, measured here."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from dataclasses import dataclass
from time import perf_counter
from typing import Any

import torch

from vitc.bench.clock import clock_for
from vitc.bench.contenders import torch_settings
from vitc.runtime.context import moved_bytes
from vitc.verify.handle import torch_dtype

_SIZE = {"cuda": 8192, "cpu": 1024}  # of a square matrix
_COPY = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes


@dataclass(frozen=True)
class Ceilings:
    """flops: FLOP/s of a product in `dtype`; bytes: bytes/s read plus written by a copy. Both
    sustained: a card at its power limit is faster for some milliseconds.
    """

    dtype: str
    flops: float
    bytes: float

    def floor(self, flops: float, moved: float) -> float:
        """Seconds that so much work takes at least."""
        return max(flops / self.flops, moved / self.bytes)

    def roof(self, manifest: Mapping[str, Any], batch: int) -> float:
        """Images per second if each kernel of a library ran at one of the ceilings."""
        steps: list[Mapping[str, Any]] = manifest["steps"]
        work = ((step["flops"] * batch, moved_bytes(step, batch)) for step in steps)
        return batch / sum(self.floor(flops, moved) for flops, moved in work)


def measure_ceilings(
    device: torch.device, dtype: str, *, threads: int, seconds: float = 0.5
) -> Ceilings:
    """Medians of the second half of `seconds` of running each. dtype: of vitc, also "tf32".

    Raises DeviceError where nothing can be timed.
    """
    clock, size = clock_for(device), _SIZE[device.type]
    element = torch_dtype(dtype)
    with torch_settings(threads, dtype), torch.inference_mode():
        a, b = (torch.randn(size, size, device=device).to(element) for _ in range(2))
        product = torch.empty_like(a)
        source = torch.randn(_COPY[device.type] // 4, device=device)
        target = torch.empty_like(source)

        def sustained(run: Any) -> float:
            end, times = perf_counter() + seconds, list[float]()
            while perf_counter() < end or len(times) < 4:
                times.append(clock(run))
            return statistics.median(times[len(times) // 2 :])

        multiply = sustained(lambda: torch.mm(a, b, out=product))
        copy = sustained(lambda: target.copy_(source))
    return Ceilings(dtype, 2 * size**3 / multiply, 2 * _COPY[device.type] / copy)
