"""The GPUs of this machine, asked of the vendors' drivers, and why there are none."""

from __future__ import annotations

import ctypes
import importlib
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from vitc.codegen.toolchain import install_command, pip_install


@dataclass(frozen=True)
class Device:
    """One GPU. arch: `sm_90` or `gfx90a`; memory: bytes; driver: as its vendor writes it."""

    vendor: Literal["nvidia", "amd"]
    index: int
    name: str
    arch: str
    memory: int
    driver: str

    def describe(self) -> str:
        """On one line, for people."""
        return f"{self.name} ({self.arch}, {self.memory / 2**30:.0f} GiB, driver {self.driver})"


@dataclass(frozen=True)
class Devices:
    """The GPUs of one vendor; without any, the reason, and what to do about it if something can be
    done.
    """

    found: tuple[Device, ...]
    reason: str = ""
    fix: str | None = None


class _DriverError(Exception):
    """A call of a vendor's driver failed; the text says which, and how."""


def nvidia_devices() -> Devices:
    """NVIDIA's GPUs through cuda-python's driver API. Never raises: what fails is the reason."""
    try:
        driver: Any = importlib.import_module("cuda.bindings.driver")
    except ImportError:
        return Devices((), "cuda-python is not installed", f"{pip_install()} cuda-python")
    try:
        _nvidia(driver, "cuInit", 0)
        version = _nvidia(driver, "cuDriverGetVersion")
        count = _nvidia(driver, "cuDeviceGetCount")
        found = tuple(_nvidia_device(driver, index, version) for index in range(count))
    except _DriverError as error:
        return Devices((), str(error))
    except RuntimeError:  # cuda-python's word for a missing libcuda.so
        fix = "install NVIDIA's driver, for an NVIDIA GPU"
        return Devices((), "no NVIDIA driver (libcuda.so.1)", fix)
    return Devices(found, "" if found else "the driver reports no device")


def _nvidia_device(driver: Any, index: int, version: int) -> Device:
    handle = _nvidia(driver, "cuDeviceGet", index)
    attribute = driver.CUdevice_attribute
    major = _nvidia(
        driver,
        "cuDeviceGetAttribute",
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR,
        handle,
    )
    minor = _nvidia(
        driver,
        "cuDeviceGetAttribute",
        attribute.CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR,
        handle,
    )
    name = bytes(_nvidia(driver, "cuDeviceGetName", 128, handle)).split(b"\0")[0].decode()
    memory = int(_nvidia(driver, "cuDeviceTotalMem", handle))
    # CUDA writes 13.2 as 13020.
    text = f"{_nvidia_module_version() or '?'} (CUDA {version // 1000}.{version % 1000 // 10})"
    return Device("nvidia", index, name, f"sm_{major}{minor}", memory, text)


def _nvidia(driver: Any, function: str, *arguments: Any) -> Any:
    """Calls a function of the driver API, which returns its error code before its result."""
    code, *result = getattr(driver, function)(*arguments)
    if int(code) != 0:
        raise _DriverError(f"{function} failed: {getattr(code, 'name', code)}")
    return result[0] if result else None


def _nvidia_module_version(path: Path = Path("/proc/driver/nvidia/version")) -> str | None:
    """The kernel module's release, as 580.159.03."""
    try:
        match = re.search(r"\b(\d{3,}\.\d+(?:\.\d+)?)\b", path.read_text(encoding="utf-8"))
    except OSError:
        return None
    return match.group(1) if match else None


# The plain name comes with the developer packages only.
_HIP_LIBRARIES = (
    "libamdhip64.so",
    "libamdhip64.so.7",
    "libamdhip64.so.6",
    "libamdhip64.so.5",
    "/opt/rocm/lib/libamdhip64.so",
)


def amd_devices(kfd: Path = Path("/sys/class/kfd/kfd/topology/nodes")) -> Devices:
    """AMD's GPUs through HIP's C API, their architectures from the kernel. Never raises."""
    hip = _load_first(_HIP_LIBRARIES)
    if hip is None:
        fix = f"{install_command('hip')}  # for an AMD GPU"
        return Devices((), "no HIP runtime (libamdhip64.so)", fix)
    try:
        count, version = ctypes.c_int(), ctypes.c_int()
        _hip(hip, "hipGetDeviceCount", ctypes.byref(count))
        _hip(hip, "hipDriverGetVersion", ctypes.byref(version))
        archs = amd_architectures(kfd)
        found = tuple(_amd_device(hip, i, archs, version.value) for i in range(count.value))
    except _DriverError as error:
        return Devices((), str(error))
    return Devices(found, "" if found else "HIP reports no device")


def _amd_device(hip: ctypes.CDLL, index: int, archs: list[str], version: int) -> Device:
    name, memory = ctypes.create_string_buffer(256), ctypes.c_size_t()
    _hip(hip, "hipDeviceGetName", name, len(name), index)
    _hip(hip, "hipDeviceTotalMem", ctypes.byref(memory), index)
    arch = archs[index] if index < len(archs) else "unknown"
    # HIP writes 5.2.21153 as 50221153.
    text = f"HIP {version // 10**7}.{version // 10**5 % 100}"
    return Device("amd", index, name.value.decode(errors="replace"), arch, memory.value, text)


def amd_architectures(kfd: Path) -> list[str]:
    """The gfx names of the GPUs in the kernel driver's topology, in its order.

    gfx_target_version is major * 10000 + minor * 100 + stepping, the last two printed in
    hexadecimal: 90010 is gfx90a (Linux, drivers/gpu/drm/amd/amdkfd).
    """
    archs: list[str] = []
    for node in sorted(kfd.glob("*/properties"), key=lambda path: int(path.parent.name)):
        match = re.search(r"^gfx_target_version (\d+)$", node.read_text("utf-8"), re.MULTILINE)
        number = int(match.group(1)) if match else 0
        if number:  # a CPU's node has 0
            archs.append(f"gfx{number // 10000}{number // 100 % 100:x}{number % 100:x}")
    return archs


def _load_first(names: Sequence[str]) -> ctypes.CDLL | None:
    for name in names:
        try:
            return ctypes.CDLL(name)
        except OSError:
            continue
    return None


def _hip(hip: ctypes.CDLL, function: str, *arguments: Any) -> None:
    code = int(getattr(hip, function)(*arguments))
    if code != 0:
        hip.hipGetErrorString.restype = ctypes.c_char_p
        text = (hip.hipGetErrorString(code) or b"").decode(errors="replace")
        raise _DriverError(f"{function} failed: {text} ({code})")
