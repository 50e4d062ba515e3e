"""Measured times of kernels' configurations: the user's own, then those shipped with the package.

A record file holds one card's times, made by `vitc tune`:

    {"device": ..., "arch": "sm_90a", "toolkit": "13.0", "date": ..., "kernels": {name: digest},
     "problems": [{"kernel": name, "problem": ..., "size": ..., "us": {configuration: time}}]}

A kernel's digest is that of its own headers: times of other ones are as if they were not there.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import log
from pathlib import Path
from typing import Any

from vitc.codegen.cache import cache_root
from vitc.codegen.render import TEMPLATES
from vitc.errors import LoadError, StorageError
from vitc.runtime.files import atomic_file

SHIPPED = Path(__file__).parent / "targets" / "gpu" / "records"

# A record speaks for sizes up to this ratio away: waves of tiles change beyond it.
REACH = 1.15


@dataclass(frozen=True)
class Choice:
    """What a kernel has to choose at a site for one batch, as records name it.

    arch: such as "sm_90a". headers: those that hold the kernel's algorithm, below
    templates/include/vitc, rather than all that name instructions for them. problem: all that
    the time depends on but `size`, which grows with the batch (rows of a product). names: the
    configurations that may win, the one that the cost model prefers first.
    """

    arch: str
    kernel: str
    headers: tuple[str, ...]
    problem: str
    size: int
    names: tuple[str, ...] = ()

    @property
    def key(self) -> str:
        return f"{self.kernel} {self.problem} {self.size}"


@dataclass(frozen=True)
class Measured:
    """Microseconds of each configuration that was measured and computes what the others do."""

    kernel: str
    problem: str
    size: int
    us: Mapping[str, float]


def fastest(choice: Choice) -> list[str]:
    """Configurations, fastest first, by the first record of a size near to the choice's; or []."""
    digest = kernel_digest(choice.headers)
    for path in (*user_files(choice.arch), *sorted(SHIPPED.glob("*.json"))):
        record = read(path)
        if record["arch"] != choice.arch or record["kernels"].get(choice.kernel) != digest:
            continue
        times = _nearest(record["problems"], choice)
        if times:
            return sorted(times, key=lambda name: times[name])
    return []


def chosen(choice: Choice) -> str:
    """The configuration that was measured fastest, else the one that the cost model prefers."""
    return next(name for name in (*fastest(choice), *choice.names) if name in choice.names)


def _nearest(problems: Sequence[Mapping[str, Any]], choice: Choice) -> Mapping[str, float]:
    best, found = log(REACH), dict[str, float]()
    for entry in problems:
        if (entry["kernel"], entry["problem"]) != (choice.kernel, choice.problem):
            continue
        distance = abs(log(entry["size"] / choice.size))
        if distance <= best:
            best, found = distance, entry["us"]
    return found


def read(path: Path) -> Mapping[str, Any]:
    """A record file. Raises LoadError when it is none."""
    try:
        return _read(path, path.stat().st_mtime_ns)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise LoadError(f"'{path}' is no record of times: {error}", hint="delete it") from error


@cache
def _read(path: Path, modified: int) -> Mapping[str, Any]:
    record: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    for key in ("device", "arch", "toolkit", "kernels", "problems"):
        record[key]
    return record


def user_folder() -> Path:
    """Where `vitc tune` keeps what it measured: beside the build cache."""
    return cache_root() / "records"


def user_file(device: str, arch: str, toolkit: str) -> Path:
    """The user's record of one card and CUDA release."""
    return user_folder() / (re.sub(r"[^\w.]+", "-", f"{arch} {device} {toolkit}") + ".json")


def user_files(arch: str) -> list[Path]:
    """The user's records of an architecture: of this machine's card and nvcc first, then latest
    first.
    """
    found = sorted(user_folder().glob(f"{arch}-*.json"), key=lambda path: -path.stat().st_mtime_ns)
    if len(found) > 1:
        device, toolkit = _here()
        # sorted() keeps the order of equals.
        found.sort(key=lambda p: (read(p)["device"] != device, read(p)["toolkit"] != toolkit))
    return found


@cache
def _here() -> tuple[str, str]:
    """Name of the first card, and nvcc's release; empty where there is none."""
    from vitc.codegen.toolchain import find_compiler
    from vitc.devices import nvidia_devices

    devices, nvcc = nvidia_devices().found, find_compiler("cuda").compiler
    return devices[0].name if devices else "", toolkit_name(nvcc.version) if nvcc else ""


def toolkit_name(version: tuple[int, ...]) -> str:
    """A CUDA release as records name it: 13.0."""
    return ".".join(map(str, version[:2]))


def store(
    path: Path,
    about: Mapping[str, str],
    digests: Mapping[str, str],
    measured: Iterable[Measured],
) -> None:
    """Adds times to a record file; what it holds of other headers, or of the same problem, goes.

    about: device, arch, toolkit, date. digests: of each kernel measured. Raises StorageError.
    """
    old: Mapping[str, Any] = read(path) if path.exists() else {"kernels": {}, "problems": []}
    kernels: dict[str, str] = {**old["kernels"], **digests}
    kept: dict[tuple[str, str, int], Mapping[str, float]] = {
        (e["kernel"], e["problem"], e["size"]): e["us"]
        for e in old["problems"]
        if old["kernels"].get(e["kernel"]) == kernels[e["kernel"]]
    }
    for m in measured:
        kept[m.kernel, m.problem, m.size] = dict(sorted(m.us.items(), key=lambda item: item[1]))
    lines = ",\n  ".join(
        json.dumps({"kernel": kernel, "problem": problem, "size": size, "us": us})
        for (kernel, problem, size), us in sorted(kept.items(), key=lambda item: item[0])
    )
    head = json.dumps({**about, "kernels": kernels})[:-1]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with atomic_file(path) as file:
            file.write(f'{head}, "problems": [\n  {lines}\n]}}\n'.encode())
    except OSError as error:
        raise StorageError(f"cannot write '{path}': {error.strerror or error}") from error


@cache
def kernel_digest(headers: tuple[str, ...]) -> str:
    """Of a kernel's headers, without comments and layout, which change neither an instruction nor a
    time.
    """
    root = TEMPLATES / "include" / "vitc"
    texts = (without_layout((root / header).read_text(encoding="utf-8")) for header in headers)
    return hashlib.sha256("\0".join(texts).encode()).hexdigest()[:16]


def without_layout(text: str) -> str:
    """C++ text without comments and blanks, neighbouring string literals joined."""
    text = re.sub(r"/\*.*?\*/|//[^\n]*", "", text, flags=re.DOTALL)
    return re.sub(r"\s+", "", text).replace('""', "")
