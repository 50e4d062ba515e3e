"""Tests of this folder run kernels on a GPU; without one they are skipped, with the reason."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from runtime import gpu_toy

from vitc.devices import Device, amd_devices, nvidia_devices
from vitc.runtime import Module, load


@pytest.fixture(scope="session")
def nvidia() -> Device:
    """The first NVIDIA GPU."""
    devices = nvidia_devices()
    if not devices.found:
        pytest.skip(f"no NVIDIA GPU: {devices.reason}")
    return devices.found[0]


@pytest.fixture(scope="session")
def cuda_toy(nvidia: Device, tmp_path_factory: pytest.TempPathFactory) -> gpu_toy.Builder:
    """Builds variants of the toy library for this GPU."""
    return gpu_toy.Builder(tmp_path_factory.getbasetemp(), "cuda")


@pytest.fixture
def toy_module(cuda_toy: gpu_toy.Builder) -> Iterator[Module]:
    """The loaded toy, in float32."""
    with load(cuda_toy()) as module:
        yield module


@pytest.fixture(scope="session")
def amd() -> Device:
    """The first AMD GPU."""
    devices = amd_devices()
    if not devices.found:
        pytest.skip(f"no AMD GPU: {devices.reason}")
    return devices.found[0]
