"""Every op on the CPU target, straight from IR text, against the interpreter in float64."""

from __future__ import annotations

from pathlib import Path

import pytest
from codegen.op_cases import CASES
from graphs import assign, errors

from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.ir.text import parse_graph
from vitc.ir.types import DType
from vitc.ops.fused import STEP_ARITY, Fused


@pytest.mark.parametrize("isa", ["avx512", "avx2"])
@pytest.mark.parametrize("case", CASES)
def test_float32(case: str, isa: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITC_ISA", isa)
    if isa == "avx512" and "avx512f" not in Path("/proc/cpuinfo").read_text():
        pytest.skip("this machine has no AVX-512")
    found = errors(CASES[case], tmp_path)
    assert max(found.values()) < 2e-6, found


@pytest.mark.parametrize("case", CASES)
def test_bfloat16(case: str, tmp_path: Path) -> None:
    """Activations and matrices in bfloat16: errors are those of its 8 bits, not of a wrong index."""
    found = errors(assign(CASES[case], DType.BFLOAT16), tmp_path)
    assert max(found.values()) < 3e-2, found
    assert max(found.values()) > 1e-4, "nothing was rounded to bfloat16"


@pytest.mark.parametrize("case", ["stem", "grid", "levit_attention"])
def test_no_copies_are_made(case: str) -> None:
    """Kernels read and write through the maps of images, windows, merges and heads."""
    calls = select(parse_graph(CASES[case]), find_target("cpu")).calls
    assert "pointwise" not in {call.kernel.name for call in calls}


def test_every_step_of_the_cpu_is_covered() -> None:
    graphs = [parse_graph(text) for text in CASES.values()]
    used = {s.kind for g in graphs for n in g.nodes if isinstance(n.op, Fused) for s in n.op.steps}
    assert set(STEP_ARITY) - used == {"log", "sin", "cos"}, "these have no form on the CPU"
