"""rowwise.cuh and convolutions emulated, in both orders."""

from __future__ import annotations

import pytest
from kernels.gpu.case import run_emulated
from kernels.gpu.rows_cases import conv_cases, rows_cases

DTYPES = ("float32", "float16")  # bfloat16 differs in conversions alone; tests/codegen has it
FORMS = ("float16", "tf32", "float16 sm_75")  # 16 and 4 bytes, copies with and without cp.async
ROWS = {dtype: rows_cases(dtype) for dtype in DTYPES}
CONVOLUTIONS = {form: conv_cases(form) for form in FORMS}


@pytest.mark.parametrize(("dtype", "index"), [(d, i) for d in DTYPES for i in range(len(ROWS[d]))])
def test_rows(dtype: str, index: int) -> None:
    run_emulated(ROWS[dtype], index)


@pytest.mark.parametrize(
    ("form", "index"), [(f, i) for f in FORMS for i in range(len(CONVOLUTIONS[f]))]
)
def test_convolution(form: str, index: int) -> None:
    run_emulated(CONVOLUTIONS[form], index)
