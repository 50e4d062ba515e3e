"""The toy library, compiled once per session."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from runtime import toy

from vitc.runtime import Module, load


@pytest.fixture(scope="session")
def build(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Builds a variant of the toy, once for all test processes."""
    base = tmp_path_factory.getbasetemp()
    shared = base.parent if "PYTEST_XDIST_WORKER" in os.environ else base

    def get(key: str, **options: object) -> Path:
        done = shared / f"toy-{key}.elf"
        if not done.exists():
            # Two processes may build it at the same time; the rename decides.
            made = toy.build_elf(tmp_path_factory.mktemp(f"toy-{key}"), **options)  # type: ignore[arg-type]
            os.replace(made, done)
        return done

    return get


@pytest.fixture(scope="session")
def elf(build: Callable[..., Path]) -> Path:
    """The toy in float32, without weights."""
    return build("float32")


@pytest.fixture
def library(elf: Path, tmp_path: Path) -> Path:
    """A complete toy library of one's own, to load or to damage."""
    return toy.make_library(elf, tmp_path / "toy.so")


@pytest.fixture
def module(library: Path) -> Iterator[Module]:
    """The loaded toy, with two threads per context."""
    with load(library, threads=2) as loaded:
        yield loaded
