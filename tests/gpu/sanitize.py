"""Runs compute-sanitizer's four tools on small models, and prints what each of them found.

    python3 tests/gpu/sanitize.py
    python3 tests/gpu/sanitize.py --only "racecheck vit-base"

Compiles and computes references outside of the sanitizer. Inside, a process loads the library with
numpy alone, so that all kernels it sees are vitc's: those of torch read memory that they have not
written, too. Each batch runs as plain launches, while captured, and as a graph.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import tempfile
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor, as_completed
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
_SMALL: dict[str, Any] = {"img_size": (96, 80), "depth": 2, "embed_dim": 128, "num_heads": 2}


@dataclass(frozen=True)
class Case:
    """A model, and what it is compiled for. bound: relative L2 error to float64."""

    name: str
    model: str
    target: str
    dtype: str = "float16"
    batches: tuple[int, ...] = (1, 5)
    options: dict[str, Any] = field(default_factory=lambda: dict(_SMALL))
    bound: float = 5e-3  # numpy has no bfloat16, hence no case of it

    @property
    def title(self) -> str:
        return f"{self.name} {self.target}"


_HYBRID = {"img_size": 64, "depth": 1}  # convolutions, group norms, a pool
_SWIN = {"depths": (2, 2, 2, 2)}  # windows, shifted and not, and merges
CASES = (
    Case("vit", "vit_tiny_patch16_224", "cuda:sm_80", batches=(1, 5, 64)),
    Case("vit-tf32", "vit_tiny_patch16_224", "cuda:sm_80", "tf32"),
    Case("vit-f32", "vit_tiny_patch16_224", "cuda:sm_80", "float32", bound=1e-5),
    Case("vit-turing", "vit_tiny_patch16_224", "cuda:sm_75"),
    Case("hybrid", "vit_tiny_r_s16_p8_224", "cuda:sm_80", options=_HYBRID),
    Case("vit", "vit_tiny_patch16_224", "cuda:sm_90a", batches=(1, 5, 64)),
    Case("vit-base", "vit_base_patch16_224", "cuda:sm_90a", batches=(1, 16), options={"depth": 2}),
    Case("hybrid", "vit_tiny_r_s16_p8_224", "cuda:sm_90a", options=_HYBRID),
    Case("swin", "swin_tiny_patch4_window7_224", "cuda:sm_80", options=_SWIN),
    Case("swin", "swin_tiny_patch4_window7_224", "cuda:sm_90a", options=_SWIN),
    Case("levit", "levit_128s", "cuda:sm_90a", options={}),
)


def prepare(case: Case, folder: Path) -> Path:
    """The folder of a case: its library, images and the results to expect."""
    import timm
    import torch

    import vitc
    from vitc.verify import images, redraw, reference

    folder = folder / re.sub(r"\W", "_", case.title)
    folder.mkdir()
    model = timm.create_model(case.model, **case.options).eval()
    redraw(model, seed=3)
    with vitc.compile(
        model,
        batch=case.batches,
        target=case.target,
        dtype=case.dtype,
        output=folder / "model.so",
    ) as module:
        _, channels, height, width = module.inputs[0].shape
        dtype = getattr(torch, module.inputs[0].dtype)
    x = images(case.batches[-1], (channels, height, width), seed=9)
    np.save(folder / "x.npy", x.to(dtype).numpy())
    np.save(folder / "y.npy", reference(model, x).numpy())
    return folder


def child(folder: Path, batches: list[int], bound: float) -> None:
    """Runs a library and compares what it computes; in the sanitized process."""
    import vitc

    x, y = np.load(folder / "x.npy"), np.load(folder / "y.npy")
    with vitc.load(folder / "model.so") as module:
        for batch in batches:
            first = None
            for _ in range(3):  # plain, captured, replayed
                result = np.asarray(module(x[:batch]), np.float64)
                wanted = y[:batch]
                error = np.linalg.norm(result - wanted) / np.linalg.norm(wanted)
                assert error <= bound, f"batch {batch}: error {error:.1e}, bound {bound:.1e}"
                assert first is None or np.array_equal(result, first), f"batch {batch}: differs"
                first = result


def sanitize(tool: str, case: Case, folder: Path, limit: float) -> tuple[str, float]:
    """Everything that one run printed, and its seconds."""
    command = ["compute-sanitizer", "--tool", tool, "--print-limit", "2000"]
    # cuda-python asks the driver for functions that it may lack, which is no error.
    command += ["--report-api-errors", "no"] if tool == "memcheck" else []
    command += [sys.executable, __file__, "--child", str(folder), "--bound", str(case.bound)]
    command += ["--batches", *map(str, case.batches)]
    start = time.perf_counter()
    try:
        done = subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=limit,
            check=False,
        )
        text = done.stdout + ("" if done.returncode == 0 else f"\nexit {done.returncode}\n")
    except subprocess.TimeoutExpired as error:
        text = f"{(error.stdout or b'').decode()}\nexit: not done in {limit:.0f} s\n"
    return text, time.perf_counter() - start


def reports(text: str) -> list[str]:
    """The reports in what compute-sanitizer printed: a heading and the indented lines below."""
    found: list[str] = []
    for line in text.splitlines():
        if not line.startswith("========= "):
            continue
        body = line.removeprefix("========= ")
        if body.startswith(" ") and found:
            found[-1] += "\n" + body
        elif not re.match(r"COMPUTE-SANITIZER|(ERROR|RACECHECK) SUMMARY", body):
            found.append(body)
    return [report for report in found if report.strip()]


def kind(report: str) -> str:
    """What two reports have in common if they are of one cause: heading, kernel, source lines."""
    heading = re.sub(r"0x[0-9a-f]+|\b\d+\b", "#", report.split("\n", 1)[0])
    places = re.findall(r"(?:at |access (?:at|by)|Access).*", report)
    text = "\n".join([heading, *places[:2]])
    text = re.sub(r"\(\d+,\d+,\d+\)|0x[0-9a-f]+|\[\d+ hazards?\]", "#", text)
    return re.sub(r"<.*>", "<>", text)


# racecheck takes the arrival at an mbarrier as a release of what the arriving thread wrote. Lane 0
# arrives for its warp here, behind sync_warp(), which orders the other lanes' writes before it: of
# 2000 hazards listed one by one, none had a lane 0 as its writer.
FALSE_REPORTS = (
    ("sm90::fetch_for_epilogue", "sm90::read_scales"),
    ("sm90::fetch_for_epilogue", "::scales(int) const"),  # the same read, inlined
)


def show(name: str, text: str, seconds: float) -> bool:
    """Prints a run; whether it was clean."""
    summary = re.findall(r"(?:ERROR|RACECHECK) SUMMARY: .*", text)
    failed = re.findall(r"^exit.*", text, re.MULTILINE)
    found = [
        report
        for report in reports(text)
        if not any(all(part in report for part in pair) for pair in FALSE_REPORTS)
    ]
    ignored = len(reports(text)) - len(found)
    complete = bool(summary) and not failed
    clean = complete and not found and (ignored > 0 or " 0 " in summary[0])
    verdict = "ok  " if clean else "BAD "
    print(f"{verdict}{name}: {summary} {failed} {ignored} false, {seconds:.0f} s", flush=True)
    if clean:
        return True
    counts = Counter(map(kind, found))
    for which, count in counts.most_common(6):
        example = next(report for report in found if kind(report) == which)
        lines = [line[:230] for line in example.splitlines() if "Host Frame" not in line]
        print(f"  {count} like this:\n    " + "\n    ".join(lines[:8]))
    if not found:
        print("    " + "\n    ".join(text.splitlines()[-8:]))
    return False


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--only", default="", help="patterns that a run's name has all of")
    parser.add_argument("--limit", type=float, default=120, help="seconds a run")
    parser.add_argument("--log", type=Path, help="a file for all that the tools print")
    parser.add_argument("--child", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--bound", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--batches", type=int, nargs="*", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        child(given.child, given.batches, given.bound)
        return 0
    runs = [(tool, case) for case in CASES for tool in TOOLS]
    words = given.only.split()
    named = {f"{tool} {case.title}": (tool, case) for tool, case in runs}
    named = {
        name: run for name, run in named.items() if all(re.search(word, name) for word in words)
    }
    start = time.perf_counter()
    with tempfile.TemporaryDirectory() as temporary, ThreadPoolExecutor(len(named) or 1) as pool:
        # Objects with line numbers, of which the usual cache must not know.
        os.environ |= {
            "VITC_CACHE": f"{temporary}/cache",
            "NVCC_APPEND_FLAGS": "-lineinfo",
        }
        cases = {case.title: case for _, case in named.values()}
        folders = {title: prepare(case, Path(temporary)) for title, case in cases.items()}
        taken = time.perf_counter() - start
        print(f"{len(folders)} libraries compiled in {taken:.0f} s", flush=True)
        results = {
            pool.submit(sanitize, tool, case, folders[case.title], given.limit): name
            for name, (tool, case) in named.items()
        }
        clean: list[bool] = []
        for done in as_completed(results):
            text, seconds = done.result()
            clean.append(show(results[done], text, seconds))
            if given.log:
                with given.log.open("a") as log:
                    log.write(f"##### {results[done]}\n{text}")
    print(f"{sum(clean)} of {len(clean)} runs clean, {time.perf_counter() - start:.0f} s in all")
    return 0 if all(clean) else 1


if __name__ == "__main__":
    raise SystemExit(main())
