"""clang++ as the host compiler: of the CPU target's kernels, and of the emulator."""

from __future__ import annotations

from pathlib import Path

import pytest
from codegen.op_cases import CASES
from graphs import assign, errors

from vitc.codegen.toolchain import find_compiler, find_toolchain
from vitc.ir.types import DType


@pytest.fixture(autouse=True)
def clang(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "clang++")
    search = find_compiler("c++")
    if search.compiler is None:
        pytest.skip(f"no clang++ 14 or later: {search.rejected[0]}")
    assert find_toolchain().host.family == "clang"


@pytest.mark.parametrize(
    ("target", "case", "dtype", "bound"),
    [
        ("cpu", "steps", DType.FLOAT32, 2e-6),
        ("cpu", "statistics", DType.BFLOAT16, 3e-2),
        ("cpu", "attention", DType.BFLOAT16, 3e-2),
        ("cpu", "stem", DType.FLOAT32, 2e-6),
        ("cuda:sm_80:emulated", "statistics", DType.FLOAT16, 4e-3),
        ("cuda:sm_80:emulated", "attention", DType.FLOAT16, 4e-3),
        ("cuda:sm_90a:emulated", "steps", DType.FLOAT16, 4e-3),
    ],
)
def test_ops(target: str, case: str, dtype: DType, bound: float, tmp_path: Path) -> None:
    found = errors(assign(CASES[case], dtype), tmp_path, target=target)
    assert max(found.values()) < bound, found
