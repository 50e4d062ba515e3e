"""The GEMM kernel emulated, in both orders."""

from __future__ import annotations

import pytest
from kernels.gpu.case import run_emulated
from kernels.gpu.gemm_cases import FORMS, gemm_cases

CASES = {form: gemm_cases(form) for form in FORMS}


@pytest.mark.parametrize(
    ("form", "index"),
    [(form, i) for form in FORMS for i in range(len(CASES[form]))],
    ids=lambda x: x if isinstance(x, str) else str(x),
)
def test_gemm(form: str, index: int) -> None:
    for statistics in run_emulated(CASES[form], index):
        assert statistics.ldmatrix_conflicts == 0
