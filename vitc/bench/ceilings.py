"""What the device can do at most: a large product and a large copy by torch, measured here."""

from __future__ import annotations

import math
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

_SIZE = {"cuda": 8192, "cpu": 1024}  # of square matrices
_COPY = {"cuda": 1 << 30, "cpu": 1 << 28}  # bytes


@dataclass(frozen=True)
class Ceilings:
    """flops: FLOP/s of a product in `dtype`; bytes: bytes/s read plus written by a copy. On a GPU
    both sustained: a card at its power limit is faster for some milliseconds. On a CPU the best: it
    is slower only where something else disturbs.
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
    """Runs each for `seconds`. dtype: of vitc, also "tf32". Raises DeviceError where nothing can be
    timed.
    """
    clock, size, copied = clock_for(device), _SIZE[device.type], _COPY[device.type]

    def time(run: Any) -> float:
        end, times = perf_counter() + seconds, list[float]()
        while perf_counter() < end or len(times) < 4:
            times.append(clock(run))
        if device.type == "cpu":
            return min(times)
        return statistics.median(times[len(times) // 2 :])

    with torch_settings(threads, dtype), torch.inference_mode():
        multiply = time(_product(size, device, torch_dtype(dtype)))
        source = torch.randn(copied // 4, device=device)
        target = torch.empty_like(source)
        copy = time(lambda: target.copy_(source))
    return Ceilings(dtype, 2 * size**3 / multiply, 2 * copied / copy)


def _product(size: int, device: torch.device, dtype: torch.dtype) -> Any:
    """Multiplies two square matrices, in the way that torch is fastest."""
    a, b = (torch.randn(size, size, device=device).to(dtype) for _ in range(2))
    if device.type == "cpu":
        # A convolution of single pixels goes to oneDNN, a plain product to MKL, which holds back
        # on processors of other makers.
        side = math.isqrt(size)
        image = a.t().reshape(1, size, side, side).to(memory_format=torch.channels_last)
        return lambda: torch.nn.functional.conv2d(image, b.reshape(size, size, 1, 1))
    result = torch.empty_like(a)
    return lambda: torch.mm(a, b, out=result)
