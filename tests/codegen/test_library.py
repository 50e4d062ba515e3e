"""What the library's C ABI cannot pass is refused before any kernel is rendered."""

from __future__ import annotations

import pytest

from vitc.codegen.library import LibrarySource, library_source
from vitc.codegen.memory import plan_memory
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


def library(output: str) -> LibrarySource:
    graph, target = parse_graph(WINDOWS.format(output)), find_target("cpu")
    selection = select(graph, target)
    plan = plan_memory(selection.calls, graph.outputs, 1)
    return library_source(selection, plan, target, batches=[1], weights_mode="embedded", about={})


def test_an_output_of_windows_is_refused() -> None:
    with pytest.raises(UnsupportedModelError, match=r"begin with the batch(.|\n)*\[4B,2,6\]"):
        library("%y")


def test_an_output_of_images_is_not() -> None:
    assert library("%z").manifest["outputs"][0]["shape"] == ["B", 8, 6]
