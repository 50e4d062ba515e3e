"""What the tests of a folder share: a compiler, a cache of their own, the shipped records alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitc.codegen import records
from vitc.codegen.cache import BuildCache
from vitc.codegen.toolchain import Toolchain, find_toolchain


@pytest.fixture(scope="session")
def toolchain() -> Toolchain:
    return find_toolchain()


@pytest.fixture
def cache(tmp_path: Path) -> BuildCache:
    return BuildCache(tmp_path / "cache")


@pytest.fixture(autouse=True)
def no_records_of_the_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels are chosen by the times that the package ships."""
    monkeypatch.setattr(records, "user_folder", lambda: tmp_path / "no-records")
