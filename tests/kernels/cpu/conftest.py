from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parent))

import harness


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """`isa` runs over the ISA levels of this machine; `dtype` over the storage types."""
    if "isa" in metafunc.fixturenames:
        metafunc.parametrize("isa", harness.isas(), scope="module")
    if "dtype" in metafunc.fixturenames:
        metafunc.parametrize("dtype", ["float", "bf16"], scope="module")
    if "threads" in metafunc.fixturenames:
        metafunc.parametrize("threads", [1, 2, 5], scope="module")


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)
