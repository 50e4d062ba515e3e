"""The attention kernel emulated, in both orders."""

from __future__ import annotations

import pytest
from kernels.gpu.attention_cases import ATTENTION_FORMS, attention_cases, large_attention_cases
from kernels.gpu.case import run_emulated

CASES = {form: attention_cases(form) for form in ATTENTION_FORMS}
CASES["large"] = large_attention_cases()


@pytest.mark.parametrize(
    ("form", "index"), [(form, i) for form in CASES for i in range(len(CASES[form]))]
)
def test_attention(form: str, index: int) -> None:
    for statistics in run_emulated(CASES[form], index):
        assert statistics.ldmatrix_conflicts == 0
