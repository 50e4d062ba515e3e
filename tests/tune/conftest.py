"""A cache for the tests of the tuner, and choices that are soon built."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tune.support import GRAPH, TARGET

from vitc.codegen import records
from vitc.codegen.kernel import Kernel, KernelCall
from vitc.codegen.targets.gpu.attention import GpuAttention
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.ir.graph import Graph
from vitc.ir.text import parse_graph
from vitc.options import CompileOptions, checked_options
from vitc.tune import trial


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No records at first; three configurations, so that few kernels are built, and once."""
    monkeypatch.setenv("VITC_CACHE", str(cache))
    shutil.rmtree(cache / "records", ignore_errors=True)
    for kernel in (GpuGemm, GpuAttention):
        whole = kernel.choice

        def few(self: Kernel, call: KernelCall, batch: int, whole: Any = whole) -> records.Choice:
            choice = whole(self, call, batch)
            return replace(choice, names=choice.names[:3])

        monkeypatch.setattr(kernel, "choice", few)
    monkeypatch.setattr(trial, "COPIES_BYTES", 1)


@pytest.fixture
def graph() -> Graph:
    return parse_graph(GRAPH)


@pytest.fixture
def options() -> CompileOptions:
    return checked_options(3, TARGET, "float16", None, None, "embedded", (), None, None)
