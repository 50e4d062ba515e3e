"""model.cc as text: a golden, and that any name or manifest survives being a C literal."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jinja2 import UndefinedError
from runtime import toy

from vitc.codegen import model_source
from vitc.codegen.model_source import ArgRef, PortParam, StepParam, render_model


def test_golden(golden: Any) -> None:
    golden.check(render_model(toy.source(manifest_text='{"format": 1}')), suffix=".cc")


def test_no_weights_and_no_steps(tmp_path: Path) -> None:
    """The library of an empty graph is still C++."""
    path = tmp_path / "model.cc"
    path.write_text(render_model(replace(toy.source(), weights=(), steps=())))
    include = f"-I{toy.TEMPLATES / 'include'}"
    subprocess.run(
        ["g++", "-std=c++17", "-Wall", "-Werror", include, "-fsyntax-only", path], check=True
    )


def test_dimension_names() -> None:
    source = toy.source()
    ports = (
        PortParam("a", "float32", (4, 2)),
        PortParam("b", "float32", (4, 2, 3)),
        PortParam("c", "float32", (4, 2, 3), ("batch", "rows", "columns")),
        PortParam("d", "float32", (4, 1, 1, 1, 2)),
        PortParam("e", "float32", (4,)),
    )
    text = render_model(replace(source, inputs=ports))
    for names in (
        '{"batch", "features"}',
        '{"batch", "tokens", "features"}',
        '{"batch", "rows", "columns"}',
        '{"batch", "axis 1", "axis 2", "axis 3", "axis 4"}',
        '{"batch"}',
    ):
        assert names in text


def test_kernels_of_one_symbol_are_declared_once() -> None:
    step = toy.source().steps[0]
    text = render_model(replace(toy.source(), steps=(step, replace(step, name="again"))))
    assert text.count("int vitc_k_scale_avx2(") == 1
    assert text.count("kernels_vitc_k_scale[]") == 1
    assert text.count("kernels_vitc_k_scale, kArgs") == 2


@pytest.mark.parametrize("isas", [("avx512",), ("avx2", "sse2")])
def test_a_kernel_without_fallback_is_refused(isas: tuple[str, ...]) -> None:
    step = StepParam("odd", "vitc_k_odd", (ArgRef("input", 0),), "%y = odd(%x)", isas)
    with pytest.raises(ValueError, match="step 'odd'"):
        replace(toy.source(), steps=(step,))


def test_templates_are_strict() -> None:
    with pytest.raises(UndefinedError):
        model_source._TEMPLATES.from_string("{{ forgotten }}").render()


def test_literals(tmp_path: Path) -> None:
    """A compiler reads back the bytes that went in."""
    awkward = [
        bytes(range(1, 256)) * 3,
        b"??/??=%s\\",
        b"\\012\n345",
        "é\u2028漢".encode(),
        b"x" * 1000,
    ]
    lines = "\n".join(f"  fputs({model_source._c_string(text)}, stdout);" for text in awkward)
    source = tmp_path / "x.c"
    source.write_text(f"#include <stdio.h>\nint main(void) {{\n{lines}\n  return 0;\n}}\n")
    subprocess.run(["cc", "-trigraphs", "-w", source, "-o", tmp_path / "x"], check=True)
    printed = subprocess.run([tmp_path / "x"], check=True, capture_output=True).stdout
    assert printed == b"".join(awkward)
    assert all(len(line) < 120 for line in source.read_text().splitlines())


@given(st.text())
def test_comments_stay_comments(text: str) -> None:
    comment = model_source._comment(text)
    assert len(comment.splitlines()) <= 1
    assert not comment.endswith("\\")
