"""The doctor's report, on this machine and on ones that are played."""

from __future__ import annotations

import json
import re
import types

import pytest

from vitc import devices, doctor
from vitc.codegen.toolchain import Search
from vitc.devices import Device, Devices, amd_architectures, amd_devices, nvidia_devices

GPU = Device("nvidia", 0, "H100", "sm_90", 80 * 2**30, "580 (CUDA 13.0)")


def test_this_machine():
    report = doctor.doctor()
    plain = json.loads(json.dumps(report.to_json()))
    assert plain["healthy"] == report.healthy
    assert {row["group"] for row in plain["rows"]} == {
        "python", "compilers", "cpu", "devices", "cache"
    }  # fmt: skip
    for row in report.rows:
        assert row.value, row
        assert row.state != "missing" or row.fix or row.group in ("cpu", "devices"), row
    assert [target.name for target in report.targets] == ["cpu", "cuda", "rocm"]


def test_an_empty_machine_says_what_to_do(monkeypatch, tmp_path):
    monkeypatch.setattr(doctor, "find_compiler", lambda language: Search(language, None))
    monkeypatch.setattr(doctor, "cpu_features", lambda: frozenset({"sse2"}))
    monkeypatch.setattr(doctor, "_PACKAGES", ("no-such-package",))
    monkeypatch.setenv("VITC_CACHE_LIMIT", "lots")
    report = doctor.doctor()
    assert not report.healthy
    fixes = {row.name: row.fix for row in report.rows if row.state == "missing"}
    assert str(fixes["no-such-package"]).endswith("pip install no-such-package")
    assert fixes["c++ compiler"]
    assert "cuda-toolkit" in str(fixes["cuda compiler"])
    assert "VITC_CACHE_LIMIT" in str(fixes["size"])
    cpu = report.targets[0]
    assert cpu.missing == ("package no-such-package", "c++ compiler", "AVX2, FMA and F16C")


def test_a_cache_that_is_nearly_out_of_disk_is_a_warning(monkeypatch, tmp_path):
    monkeypatch.setenv("VITC_CACHE", str(tmp_path / "not" / "yet"))
    monkeypatch.setattr(doctor, "free_bytes", lambda _: 2**20)
    rows = {row.name: row for row in doctor.doctor().rows}
    assert rows["free disk"].state == "warning"
    assert str(tmp_path) in rows["size"].value


def test_cpu_features_are_those_of_the_first_core(tmp_path):
    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nflags\t\t: fpu avx2 fma f16c\n\nprocessor\t: 1\nflags : x\n")
    assert doctor.cpu_features(info) == {"fpu", "avx2", "fma", "f16c"}
    assert doctor.cpu_features(tmp_path / "none") == frozenset()


# --- GPUs -----------------------------------------------------------------------------------------


def test_devices_are_found_or_a_reason_given():
    for found in (nvidia_devices(), amd_devices()):
        assert found.found or found.reason
        assert all(device.memory > 0 for device in found.found)


class Code(int):
    """An error code as cuda-python has them."""

    name = "CUDA_ERROR_NO_DEVICE"


def driver(count: int = 1, initialised: int = 0) -> types.SimpleNamespace:
    """cuda.bindings.driver, for a machine with `count` H100."""
    return types.SimpleNamespace(
        cuInit=lambda _: (Code(initialised),),
        cuDriverGetVersion=lambda: (Code(0), 13020),
        cuDeviceGetCount=lambda: (Code(0), count),
        cuDeviceGet=lambda i: (Code(0), i),
        cuDeviceGetName=lambda size, _: (Code(0), b"NVIDIA H100".ljust(size, b"\0")),
        cuDeviceTotalMem=lambda _: (Code(0), 80 * 2**30),
        cuDeviceGetAttribute=lambda which, _: (Code(0), which),
        CUdevice_attribute=types.SimpleNamespace(
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR=9,
            CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR=0,
        ),
    )


def test_nvidia_devices_are_described(monkeypatch):
    monkeypatch.setattr(devices.importlib, "import_module", lambda _: driver(2))
    found = nvidia_devices().found
    assert [(d.index, d.name, d.arch) for d in found] == [
        (0, "NVIDIA H100", "sm_90"),
        (1, "NVIDIA H100", "sm_90"),
    ]
    assert re.fullmatch(
        r"NVIDIA H100 \(sm_90, 80 GiB, driver .* \(CUDA 13\.2\)\)", found[0].describe()
    )


def test_why_there_is_no_nvidia_device(monkeypatch):
    def load(module: object):
        monkeypatch.setattr(devices.importlib, "import_module", lambda _: module)

    load(driver(initialised=100))
    assert nvidia_devices() == Devices((), "cuInit failed: CUDA_ERROR_NO_DEVICE")
    load(driver(0))
    assert nvidia_devices().reason == "the driver reports no device"

    def absent(_: str):
        raise ImportError

    monkeypatch.setattr(devices.importlib, "import_module", absent)
    assert "pip install cuda-python" in str(nvidia_devices().fix)


def test_amd_architectures_come_from_the_kernel(tmp_path):
    # Node 10 is after node 2, and node 0 is the CPU.
    for node, version in ((0, 0), (2, 90010), (10, 90402), (3, 110001)):
        folder = tmp_path / str(node)
        folder.mkdir()
        (folder / "properties").write_text(f"simd_count 8\ngfx_target_version {version}\nx 1\n")
    assert amd_architectures(tmp_path) == ["gfx90a", "gfx1101", "gfx942"]
    assert amd_architectures(tmp_path / "none") == []


def test_a_gpu_makes_its_target_run(monkeypatch):
    monkeypatch.setattr(doctor, "nvidia_devices", lambda: Devices((GPU,)))
    report = doctor.doctor()
    assert report.devices[0] == GPU
    assert report.targets[1].runs


@pytest.mark.parametrize("free", [None, 10 * 2**30])
def test_disk_rows_without_a_problem(monkeypatch, free):
    monkeypatch.setattr(doctor, "free_bytes", lambda _: free)
    rows = [row for row in doctor.doctor().rows if row.name == "free disk"]
    assert [row.state for row in rows] == ([] if free is None else ["ok"])
