"""Tests of this folder run kernels on a GPU; without one they are skipped, with the reason."""

from __future__ import annotations

import pytest

from vitc.devices import Device, amd_devices, nvidia_devices


@pytest.fixture(scope="session")
def nvidia() -> Device:
    """The first NVIDIA GPU."""
    devices = nvidia_devices()
    if not devices.found:
        pytest.skip(f"no NVIDIA GPU: {devices.reason}")
    return devices.found[0]


@pytest.fixture(scope="session")
def amd() -> Device:
    """The first AMD GPU."""
    devices = amd_devices()
    if not devices.found:
        pytest.skip(f"no AMD GPU: {devices.reason}")
    return devices.found[0]
