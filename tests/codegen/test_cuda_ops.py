"""Every op on the CUDA target: rendered text, run by the emulator, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
from codegen.op_cases import CASES
from graphs import assign, errors

from vitc.codegen.targets import find_target
from vitc.errors import InputError
from vitc.ir.types import DType

# Relative L2: two roundings of the type for products, a few more where steps amplify them.
BOUND = {DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2, DType.TF32: 4e-3, DType.FLOAT32: 2e-6}


@pytest.mark.parametrize("case", CASES)
def test_float32(case: str, tmp_path: Path) -> None:
    found = errors(CASES[case], tmp_path, target="cuda:sm_80:emulated")
    assert max(found.values()) < BOUND[DType.FLOAT32], found


@pytest.mark.parametrize("case", CASES)
def test_float16(case: str, tmp_path: Path) -> None:
    graph = assign(CASES[case], DType.FLOAT16)
    found = errors(graph, tmp_path, target="cuda:sm_80:emulated")
    assert max(found.values()) < BOUND[DType.FLOAT16], found
    assert max(found.values()) > 1e-5, "nothing was rounded to float16"


@pytest.mark.parametrize(
    ("target", "dtype"),
    [
        ("sm_80", DType.BFLOAT16),
        ("sm_80", DType.TF32),
        ("sm_75", DType.FLOAT16),
        ("sm_75", DType.FLOAT32),
    ],
)
@pytest.mark.parametrize("case", ["statistics", "attention"])
def test_other_arithmetic(case: str, target: str, dtype: DType, tmp_path: Path) -> None:
    found = errors(assign(CASES[case], dtype), tmp_path, target=f"cuda:{target}:emulated")
    assert max(found.values()) < BOUND[dtype], found


# What can stand at the boundary of a model: no attention reads images.
@pytest.mark.parametrize("case", ["steps", "grid", "rows", "stem"])
def test_float32_at_the_boundary(case: str, tmp_path: Path) -> None:
    """Images and results that numpy knows, around bfloat16."""
    graph = assign(CASES[case], DType.BFLOAT16, DType.FLOAT32)
    found = errors(graph, tmp_path, target="cuda:sm_80:emulated")
    assert max(found.values()) < BOUND[DType.BFLOAT16], found


def test_hopper(tmp_path: Path) -> None:
    graph = assign(CASES["steps"], DType.FLOAT16)
    found = errors(graph, tmp_path, target="cuda:sm_90a:emulated")
    assert 1e-5 < max(found.values()) < BOUND[DType.FLOAT16], found


@pytest.mark.parametrize(
    ("name", "message"),
    [("cuda", "no CUDA target"), ("cuda:sm_70", "no kernels for sm_70"), ("tpu", "unknown target")],
)
def test_unknown_targets_are_named(name: str, message: str) -> None:
    with pytest.raises(InputError, match=message):
        find_target(name)


def test_several_architectures_share_one_library_source() -> None:
    target = find_target("cuda:sm_90+sm_80", (1, 8))
    assert target.isas == ("sm_80", "sm_90")
    assert target.name == "cuda:sm_80+sm_90"
