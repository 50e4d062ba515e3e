"""Runs every kernel case on the GPU of this machine, and times layers of ViT, Swin and LeViT.

    python tests/gpu/kernels_device.py [--arch sm_90] [--only gemm] [--time] [--output results.json]
    python tests/gpu/kernels_device.py --arch sm_90a --only patches --time  # Hopper's gathered rows

Needs numpy and nvcc. `--arch compute_80` tests PTX that the driver compiles for the card at hand;
`--arch sm_75` forms are taken where the architecture is at least the case's. One call does it all:
    python3 tests/gpu/kernels_device.py --time --output $OUT/kernels.json
Under compute-sanitizer: `compute-sanitizer --tool memcheck python3 ... --only attention`.
"""

from __future__ import annotations

import argparse
import json
import re
import sys
import time
import traceback
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from kernels.emu import sm90_attention_cases, sm90_cases, test_fragments
from kernels.gpu import timing
from kernels.gpu.attention_cases import (
    ATTENTION_FORMS,
    attention_cases,
    large_attention_cases,
)
from kernels.gpu.case import Case, bundle
from kernels.gpu.device import DeviceError, DeviceLibrary, build_device
from kernels.gpu.gather_cases import gather_cases
from kernels.gpu.gemm_cases import FORMS, gemm_cases
from kernels.gpu.rows_cases import DTYPES, conv_cases, rows_cases


def groups(only: str, hopper: bool) -> dict[str, list[Case]]:
    """Bundles: one source each. hopper: for sm_90a, which alone has some of them."""
    found = {f"gemm {form}": gemm_cases(form) for form in FORMS}
    found |= {f"attention {form}": attention_cases(form) for form in ATTENTION_FORMS}
    found["attention large"] = large_attention_cases()
    found |= {f"rows {dtype}": rows_cases(dtype) for dtype in DTYPES}
    found |= {f"conv {form}": conv_cases(form) for form in FORMS}
    if hopper:
        found |= {"patches": gather_cases(), "hopper gemm": sm90_cases.CASES}
        found["hopper attention"] = sm90_attention_cases.CASES
    return {name: cases for name, cases in found.items() if only in name}


def run_case(library: DeviceLibrary, case: Case, index: int) -> str:
    """ "" or what went wrong."""
    try:
        case.check(library.run(case.arrays, case.sizes, entry=f"run_{index}"))
    except (AssertionError, DeviceError) as error:
        return f"{type(error).__name__}: {error}"[:600]
    return ""


def run_fragments(arch: str, nvcc: str) -> dict[str, str]:
    """The lane layouts that the emulator states, on the hardware itself."""
    library = DeviceLibrary(build_device(test_fragments.PROGRAM, arch, nvcc=nvcc))
    test_fragments.build = lambda _: library
    results = {}
    checks = {
        f"mma {kind} k{k}": (test_fragments.check_mma_16, (kind, k))
        for kind, k in (("f16", 16), ("bf16", 16), ("f16", 8))
    }
    checks |= {f"mma tf32 k{k}": (test_fragments.check_mma_tf32, (k,)) for k in (8, 4)}
    checks["ldmatrix"] = (test_fragments.check_ldmatrix, ())
    for name, (check, arguments) in checks.items():
        try:
            check(*arguments)
            results[name] = ""
        except (AssertionError, DeviceError):
            results[name] = traceback.format_exc(limit=1)[:600]
    return results


def run_timings(arch: str, nvcc: str, repeats: int, only: str) -> list[dict[str, object]]:
    rows = []
    plans = [plan for plan in timing.plans(arch == "sm_90a") if only in plan.name]
    with ThreadPoolExecutor(timing.JOBS) as pool:
        paths = list(pool.map(lambda p: build_device(bundle(p.cases), arch, nvcc=nvcc), plans))
    for plan, path in zip(plans, paths, strict=True):
        library = DeviceLibrary(path)
        rng = np.random.default_rng(0)
        noise = rng.standard_normal(1 << 20).astype(np.float16)
        for sizes, flops, nbytes, shapes in plan.runs:
            arrays = [np.resize(noise, shape) for shape in shapes]
            buffers = [library.upload(array) for array in arrays]
            for index, case in enumerate(plan.cases):
                try:
                    taken = library.time(buffers, sizes, entry=f"run_{index}", repeats=repeats)
                except DeviceError as error:
                    print(f"{plan.name} {case.name}: {error}")
                    continue
                row = {
                    "plan": plan.name,
                    "sizes": list(sizes),
                    "config": case.name,
                    "us": round(taken, 2),
                    "tflops": round(flops / taken / 1e6, 1),
                    "gbps": round(nbytes / taken / 1e3, 1),
                }
                rows.append(row)
                print("  ".join(f"{value}" for value in row.values()), flush=True)
            for buffer in buffers:
                library.release(buffer)
    return rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--arch", default="sm_90")
    parser.add_argument("--only", default="", help="groups and plans whose name holds this")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--repeats", type=int, default=50)
    parser.add_argument("--jobs", type=int, default=16)
    parser.add_argument("--nvcc", default="nvcc")
    parser.add_argument("--output", type=Path)
    options = parser.parse_args()
    timing.JOBS = options.jobs

    number = int(re.sub(r"\D", "", options.arch))
    chosen = {
        name: cases
        for name, cases in groups(options.only, options.arch == "sm_90a").items()
        if all(case.arch <= number for case in cases)
    }
    begin = time.time()
    with ThreadPoolExecutor(options.jobs) as pool:
        paths = pool.map(
            lambda cases: build_device(bundle(cases), options.arch, nvcc=options.nvcc),
            chosen.values(),
        )
        libraries = dict(zip(chosen, paths, strict=True))
    print(f"built {len(libraries)} libraries in {time.time() - begin:.0f} s", flush=True)

    results = {f"fragments {k}": v for k, v in run_fragments(options.arch, options.nvcc).items()}
    for name, cases in chosen.items():
        library = DeviceLibrary(libraries[name])
        for index, case in enumerate(cases):
            results[f"{name}: {case.name}"] = run_case(library, case, index)
    bad = {name: why for name, why in results.items() if why}
    for name, why in bad.items():
        print(f"FAILED {name}\n  {why}")
    print(f"{len(results) - len(bad)} of {len(results)} cases pass", flush=True)

    timings = (
        run_timings(options.arch, options.nvcc, options.repeats, options.only)
        if options.time
        else []
    )
    if options.output:
        report = {"arch": options.arch, "failed": bad, "cases": len(results), "timings": timings}
        options.output.write_text(json.dumps(report, indent=1))
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
