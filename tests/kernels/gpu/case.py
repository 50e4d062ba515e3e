"""A kernel test that runs anywhere: CUDA text, arrays in, a check of the arrays afterwards.

The emulator (test_*.py beside this) and a GPU (tests/gpu/kernels_device.py) run the same cases.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from kernels.emu.emulation import SCHEDULES, Statistics, build
from numpy.typing import NDArray

CPP = {"float32": "float", "tf32": "float", "float16": "half", "bfloat16": "bfloat16"}
# Relative L2 error that rounding the inputs' products and the result allows.
TOLERANCE = {"float32": 2e-6, "tf32": 1e-3, "float16": 1e-3, "bfloat16": 8e-3}


@dataclass(frozen=True)
class Case:
    """`check(arrays)` raises AssertionError; `arch` is the least the text compiles for; `held` are
    the arrays that the kernel before may be at work on (Emulated.run).

    `text` begins after the includes and defines `extern "C" int @run@(args, sizes)`.
    """

    name: str
    text: str
    arrays: list[NDArray]
    check: Callable[[Sequence[NDArray]], None]
    sizes: tuple[int, ...] = ()
    arch: int = 80
    flops: int = 0
    header: str = "vitc/gpu/gemm.cuh"
    held: tuple[int, ...] = ()

    def __str__(self) -> str:
        return self.name


def encode(values: NDArray, dtype: str) -> NDArray:
    """`values` as stored in memory; bfloat16 (round to nearest even) as uint16."""
    single = np.ascontiguousarray(values, np.float32)
    if dtype == "float16":
        return single.astype(np.float16)
    if dtype == "bfloat16":
        bits = single.view(np.uint32).astype(np.uint64)
        return ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16)
    return single


def decode(array: NDArray, dtype: str) -> NDArray:
    """The stored values in float64."""
    if dtype == "bfloat16":
        return (array.astype(np.uint32) << 16).view(np.float32).astype(np.float64)
    return array.astype(np.float64)


def statistics(values: NDArray, width: int, *, sums: bool) -> NDArray:
    """What a kernel leaves of rows [m, n] that it has stored: for each `width` columns the sum of
    squares and, with sums, the sum.
    """
    slices = np.pad(values, ((0, 0), (0, -values.shape[1] % width)))
    slices = slices.reshape(len(values), -1, width)
    squares = (slices**2).sum(-1)
    if not sums:
        return squares
    return np.stack((squares, slices.sum(-1)), -1).reshape(len(values), -1)


def emitting(width: int, columns: int, *, sums: bool) -> str:
    """Members of a functor by which statistics go to `stats`."""
    return f"""  using Statistics = gpu::{"SquaresAndSum" if sums else "Squares"};
  float* stats;
  VITC_DEVICE float* statistics_at(int m, int slice) const {{
    return stats + (m * {-(-columns // width)} + slice) * Statistics::kNumbers;
  }}
  VITC_DEVICE void statistics(int m, int slice, const Statistics& s) const {{
    s.write(statistics_at(m, slice));
  }}"""


def poison(shape: Sequence[int] | int, dtype: str) -> NDArray:
    """An output buffer full of NaN: what a kernel leaves out shows."""
    return encode(np.full(shape, np.nan, np.float32), dtype)


def draw(shape: Sequence[int], dtype: str, seed: int, *, exact: bool) -> tuple[NDArray, NDArray]:
    """(stored, float64 value) of a random operand; `exact`: from {-1, 0, 1}."""
    rng = np.random.default_rng(seed)
    values = rng.integers(-1, 2, shape) if exact else rng.standard_normal(shape)
    stored = encode(values, dtype)
    return stored, decode(stored, dtype)


def compare(got: NDArray, want: NDArray, dtype: str, *, exact: bool, factor: float = 1) -> None:
    """Equality, or relative L2 error within `factor` times the tolerance of `dtype`."""
    got = decode(got, dtype).reshape(want.shape)
    if exact:
        np.testing.assert_array_equal(got, want)
        return
    assert np.isfinite(got).all(), f"{np.size(got) - np.isfinite(got).sum()} values are not finite"
    error = np.linalg.norm(got - want) / np.linalg.norm(want)
    assert error <= factor * TOLERANCE[dtype], f"relative error {error:.3g}"
    worst = np.abs(got - want).max()
    limit = 40 * factor * TOLERANCE[dtype] * max(1.0, np.abs(want).max())
    assert worst <= limit, f"largest error {worst:.3g}"


def bundle(cases: Sequence[Case]) -> str:
    """One source with `run_<i>` for the i-th case: reading the headers costs more than a case."""
    headers = dict.fromkeys(f'#include "{case.header}"\n' for case in cases)
    bodies = (
        f"namespace case_{i} {{  // {case.name}\n{case.text.replace('@run@', f'run_{i}')}}}\n"
        for i, case in enumerate(cases)
    )
    return "".join(headers) + "namespace gpu = vitc::gpu;\n" + "".join(bodies)


def run_emulated(
    cases: Sequence[Case], index: int, schedules: Sequence[str] = SCHEDULES
) -> list[Statistics]:
    """Builds the bundle and checks one of its cases in every schedule."""
    library, case, statistics = build(bundle(cases)), cases[index], []
    for schedule in schedules:
        entry = f"run_{index}"
        arrays = library.run(
            case.arrays, case.sizes, schedule=schedule, entry=entry, held=case.held
        )
        case.check(arrays)
        statistics.append(library.statistics)
    return statistics
