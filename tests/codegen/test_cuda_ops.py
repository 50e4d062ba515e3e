"""Every op on the CUDA target: rendered text, run by the emulator, against float64."""

from __future__ import annotations

from pathlib import Path

import pytest
from codegen.op_cases import CASES
from graphs import assign, errors

from vitc.codegen.targets import find_target
from vitc.errors import InputError
from vitc.ir.text import parse_graph, print_graph
from vitc.ir.types import DType
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import run_passes

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
@pytest.mark.parametrize("case", ["statistics", "moments", "attention"])
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


@pytest.mark.parametrize("case", ["steps", "moments"])
def test_hopper(case: str, tmp_path: Path) -> None:
    graph = assign(CASES[case], DType.FLOAT16)
    found = errors(graph, tmp_path, target="cuda:sm_90a:emulated")
    assert 1e-5 < max(found.values()) < BOUND[DType.FLOAT16], found


FAR = """
graph far(%x: f32[B,50,40]) {
  weight %w: f32[96,40]
  weight %v: f32[48,96]
  %a = linear(%x, %w) {steps=[shift(24.0)]}
  %n = norm(%a) {eps=1e-5}
  %y = linear(%n, %v)
  return %y
}"""


# Where inputs and sums are rounded alike, the mean that goes through the product costs digits.
@pytest.mark.parametrize(
    ("name", "dtype", "factor"),
    [
        ("cuda:sm_80:emulated", DType.FLOAT16, 2),
        ("cuda:sm_90a:emulated", DType.FLOAT16, 2),
        ("cuda:sm_80:emulated", DType.BFLOAT16, 2),
        ("cuda:sm_80:emulated", DType.FLOAT32, 5),
        ("cpu", DType.FLOAT32, 5),
    ],
)
def test_rows_far_from_zero(name: str, dtype: DType, factor: float, tmp_path: Path) -> None:
    """A layer norm of rows whose mean is three deviations or more, without a kernel of its own."""
    width = find_target(name, (3,)).stats_width
    options = PassOptions(dtype=dtype, input_dtype=dtype, output_dtype=dtype, stats_width=width)
    found: list[float] = []
    for passes in (["row_statistics", "assign_dtypes"], ["assign_dtypes"]):
        graph = run_passes(parse_graph(FAR), passes, options)
        assert ("layer_rstd" in print_graph(graph)) == ("row_statistics" in passes)
        found.append(max(errors(graph, tmp_path, target=name).values()))
    assert 0 < found[0] < BOUND[dtype], found
    assert found[0] < factor * found[1], found


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
