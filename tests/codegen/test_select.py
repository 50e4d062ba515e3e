"""What selection refuses before any kernel is rendered."""

from __future__ import annotations

import pytest

from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.errors import UnsupportedModelError
from vitc.ir.text import parse_graph

WINDOWS = """
graph windows(%x: f32[B,8,6]) {{
  %w = move(%x) {{map=map([B,8,6], reshape([4B,2,6]))}}
  %y = softmax(%w)
  %z = move(%y) {{map=map([4B,2,6], reshape([B,8,6]))}}
  return {}
}}"""


def test_an_output_of_windows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"begin with the batch(.|\n)*\[4B,2,6\]"):
        select(parse_graph(WINDOWS.format("%y")), find_target("cpu"))


def test_an_output_of_images_is_not() -> None:
    assert select(parse_graph(WINDOWS.format("%z")), find_target("cpu")).calls
