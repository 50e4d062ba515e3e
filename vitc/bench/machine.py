"""Names the machine, so that a figure can be judged and repeated."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

from vitc.bench.results import Machine
from vitc.version import __version__


def describe_machine(manifest: Mapping[str, Any], cpuinfo: Path = Path("/proc/cpuinfo")) -> Machine:
    """The machine that a library with this manifest runs on now."""
    target = str(manifest["target"])
    versions = {"vitc": __version__, "python": platform.python_version()}
    versions |= {name: importlib.metadata.version(name) for name in ("torch", "timm", "numpy")}
    compilers: Mapping[str, str] = manifest.get("toolchain", {})
    if compilers:
        versions["compiler"] = ", ".join(compilers.values())
    device, driver = _cpu_name(cpuinfo), ""
    if target.partition(":")[0] != "cpu":
        device, driver = _gpu()
    return Machine(
        device=device,
        features=_features(cpuinfo),
        cores=len(os.sched_getaffinity(0)),
        driver=driver,
        load=os.getloadavg()[0],
        system=f"{platform.system()} {platform.release()}",
        versions=versions,
        date=datetime.now(timezone.utc).isoformat(timespec="seconds"),
    )


# The instruction sets that decide which of a library's kernels run.
_TELLING = ("avx2", "fma", "avx512f", "avx512bw", "avx512_bf16", "amx_bf16")


def _cpuinfo(path: Path) -> dict[str, str]:
    try:
        text = path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _cpu_name(path: Path) -> str:
    return _cpuinfo(path).get("model name") or platform.processor() or platform.machine()


def _features(path: Path) -> tuple[str, ...]:
    flags = set(_cpuinfo(path).get("flags", "").split())
    return tuple(name for name in _TELLING if name in flags)


def _gpu() -> tuple[str, str]:
    """Name and driver of the first GPU."""
    from vitc.devices import amd_devices, nvidia_devices

    found = (*nvidia_devices().found, *amd_devices().found)
    if not found:
        return "no GPU", ""
    return f"{found[0].name} ({found[0].arch})", found[0].driver
