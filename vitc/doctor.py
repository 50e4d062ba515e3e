"""What this machine has of what vitc needs, row by row, each with the command that mends it.

Everything here only looks: no row changes anything, and none raises for something that is missing.
"""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from vitc.codegen.cache import DEFAULT_LIMIT, BuildCache, free_bytes
from vitc.codegen.toolchain import Language, Search, find_compiler, install_command, pip_install
from vitc.devices import Device, Devices, amd_devices, nvidia_devices
from vitc.errors import VitcError

State = Literal["ok", "missing", "warning"]
LOW_DISK = 2 * 2**30  # bytes; ViT-B in float32 with its objects takes about a quarter


@dataclass(frozen=True)
class Row:
    """One finding. value: version, path or reason; fix: what to type, or None when nothing has to
    be done.
    """

    group: str
    name: str
    state: State
    value: str
    fix: str | None = None


@dataclass(frozen=True)
class Target:
    """Whether this machine can compile for a target and run what it compiled; `missing` says what
    stops it.
    """

    name: str
    compiles: bool
    runs: bool
    missing: tuple[str, ...]


@dataclass(frozen=True)
class Report:
    """What doctor() found."""

    rows: tuple[Row, ...]
    devices: tuple[Device, ...]
    targets: tuple[Target, ...]

    @property
    def healthy(self) -> bool:
        """Whether at least one target can be compiled for and run here."""
        return any(target.compiles and target.runs for target in self.targets)

    def to_json(self) -> dict[str, Any]:
        """Plain values, for json.dumps."""
        return {"healthy": self.healthy, **asdict(self)}


def doctor() -> Report:
    """Looks at Python, packages, compilers, CPU, devices and the cache. Takes about a second."""
    searches: dict[Language, Search] = {
        language: find_compiler(language) for language in ("c++", "cuda", "hip")
    }
    features = cpu_features()
    nvidia, amd = nvidia_devices(), amd_devices()
    packages = [_package_row(name) for name in _PACKAGES]
    rows = (
        _python_row(),
        *packages,
        _package_row("cuda-python", "cuda-bindings"),
        *(_compiler_row(search) for search in searches.values()),
        *_cpu_rows(features),
        _device_row("NVIDIA GPU", nvidia),
        _device_row("AMD GPU", amd),
        *_cache_rows(),
    )
    lacking = tuple(f"package {row.name}" for row in packages if row.state == "missing")
    rocm = searches["c++"], searches["hip"], amd
    targets = (
        _cpu_target(searches["c++"], features, lacking),
        _gpu_target("cuda", searches["c++"], searches["cuda"], nvidia, lacking),
        _gpu_target("rocm", *rocm, (*lacking, "vitc has no kernels for it yet")),
    )
    return Report(rows, (*nvidia.found, *amd.found), targets)


# --- Python --------------------------------------------------------------------------------------

# What `compile` imports; importing torch to ask its version would take seconds.
_PACKAGES = ("torch", "timm", "numpy", "jinja2", "networkx", "safetensors")


def _python_row() -> Row:
    # An interpreter older than pyproject.toml allows cannot even import this file.
    return Row("python", "python", "ok", f"{platform.python_version()} ({sys.executable})")


def _package_row(name: str, part: str | None = None) -> Row:
    """part: the package that does the work when `name` only gathers others."""
    try:
        return Row("python", name, "ok", importlib.metadata.version(part or name))
    except importlib.metadata.PackageNotFoundError:
        return Row("python", name, "missing", "not installed", f"{pip_install()} {name}")


# --- compilers -----------------------------------------------------------------------------------

_NEEDED_BY = {"c++": "every target", "cuda": "cuda targets", "hip": "rocm targets"}


def _compiler_row(search: Search) -> Row:
    name = f"{search.language} compiler"
    if search.compiler is not None:
        compiler = search.compiler
        return Row("compilers", name, "ok", f"{compiler.label} ({compiler.driver})")
    reason = "; ".join(search.rejected) or "none found"
    value = f"{reason} (needed by {_NEEDED_BY[search.language]})"
    return Row("compilers", name, "missing", value, install_command(search.language))


# --- CPU -----------------------------------------------------------------------------------------

# The names of Linux's /proc/cpuinfo. Each is one more path through the kernels of the cpu target.
_AVX2 = frozenset({"avx2", "fma", "f16c"})
_AVX512 = frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"})
_BF16 = frozenset({"avx512_bf16"})


def cpu_features(cpuinfo: Path = Path("/proc/cpuinfo")) -> frozenset[str]:
    """The CPU's flags as Linux names them; empty where there is no /proc/cpuinfo."""
    try:
        text = cpuinfo.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        name, _, value = line.partition(":")
        if name.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _cpu_rows(features: frozenset[str]) -> list[Row]:
    cores = len(os.sched_getaffinity(0))
    paths = (("avx2", _AVX2), ("avx512", _AVX512), ("avx512 bf16", _BF16))
    levels = [name for name, flags in paths if flags <= features]
    rows = [Row("cpu", "cores", "ok", f"{cores} usable of {os.cpu_count()}")]
    if levels:
        rows.append(Row("cpu", "instructions", "ok", ", ".join(levels)))
    else:
        reason = f"no AVX2 with FMA and F16C on this {platform.machine()} CPU"
        rows.append(Row("cpu", "instructions", "missing", reason))
    return rows


# --- devices and cache ---------------------------------------------------------------------------


def _device_row(name: str, devices: Devices) -> Row:
    if devices.found:
        return Row("devices", name, "ok", "; ".join(device.describe() for device in devices.found))
    return Row("devices", name, "missing", devices.reason, devices.fix)


def _cache_rows() -> list[Row]:
    try:
        cache = BuildCache.default()
    except VitcError as error:
        return [
            Row(
                "cache",
                "size",
                "missing",
                error.message,
                f"export VITC_CACHE_LIMIT={DEFAULT_LIMIT}",
            )
        ]
    size = f"{cache.size() / 2**20:.0f} MiB of {cache.limit / 2**20:.0f} MiB in {cache.root}"
    rows = [Row("cache", "size", "ok", size)]
    existing = next(p for p in (cache.root, *cache.root.parents) if p.exists())
    if not os.access(existing, os.W_OK):
        fix = "export VITC_CACHE=/a/folder/of/yours"
        rows.append(Row("cache", "writable", "missing", f"{existing} cannot be written", fix))
    free = free_bytes(cache.root)
    if free is not None:
        low = free < LOW_DISK
        fix = f"free some space, or export VITC_CACHE=/a/larger/disk; rm -r {cache.root} empties it"
        rows.append(
            Row(
                "cache",
                "free disk",
                "warning" if low else "ok",
                f"{free / 2**30:.1f} GiB",
                fix if low else None,
            )
        )
    return rows


# --- targets -------------------------------------------------------------------------------------


def _cpu_target(host: Search, features: frozenset[str], lacking: tuple[str, ...]) -> Target:
    missing = (*lacking, *_absent(host))
    runs = features >= _AVX2
    return Target("cpu", not missing, runs, missing if runs else (*missing, "AVX2, FMA and F16C"))


def _gpu_target(
    name: str, host: Search, gpu: Search, devices: Devices, lacking: tuple[str, ...]
) -> Target:
    missing = (*lacking, *_absent(host), *_absent(gpu))
    runs = bool(devices.found)
    return Target(name, not missing, runs, missing if runs else (*missing, devices.reason))


def _absent(search: Search) -> tuple[str, ...]:
    return () if search.compiler is not None else (f"{search.language} compiler",)
