"""Storage types: where they are set, what is cast, what stays in float32."""

from __future__ import annotations

import pytest
from passes.support import difference

from vitc.ir.text import parse_graph, print_graph
from vitc.ir.types import DType
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import run_passes

GRAPH = parse_graph(
    """
graph block(%x: f32[B,5,4]) {
  weight %w: f32[12,4]
  weight %b: f32[12]
  weight %t: f32[2,5,5]
  weight %r: f32[1,4]
  weight %p: f32[4,4]
  %s, %s.stats = pointwise(%x, %r) {steps=[add($1)], stats=4}
  %l = linear(%s, %w, %s.stats, %b) {steps=[row_rstd($2, 4.0, 1e-06), add($3)]}
  %q = move(%l) {map=map([B,5,12], slice(2,0,4,1), reshape([B,5,2,2]), permute([0,2,1,3]))}
  %k = move(%l) {map=map([B,5,12], slice(2,4,8,1), reshape([B,5,2,2]), permute([0,2,1,3]))}
  %v = move(%l) {map=map([B,5,12], slice(2,8,12,1), reshape([B,5,2,2]), permute([0,2,1,3]))}
  %a = attention(%q, %k, %v, %t) {bias=true}
  %m = move(%a) {map=map([B,2,5,2], permute([0,2,1,3]), reshape([B,5,4]))}
  %y = linear(%m, %p, %s) {steps=[add($2)]}
  %z = linear(%y, %p)
  return %y, %z
}
"""
)


@pytest.mark.parametrize("dtype", [DType.FLOAT32, DType.BFLOAT16, DType.FLOAT16])
@pytest.mark.parametrize("output", [DType.FLOAT32, DType.BFLOAT16])
def test_activations_and_matrices_have_the_compute_type(dtype: DType, output: DType) -> None:
    options = PassOptions(dtype=dtype, output_dtype=output)
    after = run_passes(GRAPH, ["assign_dtypes"], options)
    types = after.types
    assert {types[name].dtype for name in "slqkvam"} == {dtype}
    assert after.outputs == GRAPH.outputs
    assert {types[name].dtype for name in after.outputs} == {output}
    assert types["s.stats"].dtype is DType.FLOAT32
    by_output = {node.output: node for node in after.nodes}
    assert types[by_output["l"].inputs[1]].dtype is dtype
    assert by_output["l"].inputs[3] == "b"
    assert by_output["a"].inputs[3] == "t"
    casts = [node for node in after.nodes if node.output in after.constants]
    assert len(casts) == (0 if dtype is DType.FLOAT32 else 2)  # w, and p once for two readers
    assert difference(GRAPH, after) < 1e-12


def test_an_output_that_is_read_is_cast_apart() -> None:
    options = PassOptions(dtype=DType.BFLOAT16)
    after = run_passes(GRAPH, ["assign_dtypes"], options)
    assert after.types["y-2"].dtype is DType.BFLOAT16
    assert [after.producers[name].op.name for name in after.outputs] == ["pointwise", "linear"]
    assert "linear(%y-2, %p-2) {dtype=f32}" in print_graph(after)


def test_images_may_come_in_another_type() -> None:
    options = PassOptions(dtype=DType.BFLOAT16, input_dtype=DType.FLOAT16)
    after = run_passes(GRAPH, ["assign_dtypes"], options)
    assert after.inputs[0].type.dtype is DType.FLOAT16
    assert "%s, %s.stats = pointwise(%x, %r) {steps=[add($1)], stats=4, dtype=bf16}" in print_graph(
        after
    )


def test_without_a_change_the_graph_stays() -> None:
    assert run_passes(GRAPH, ["assign_dtypes"]).nodes == GRAPH.nodes


def test_doubles_and_integers_in_recipes_end_as_float32() -> None:
    graph = parse_graph(
        """
graph g(%x: f32[B,2]) {
  weight %b: f64[2]
  %l = literal() {shape=[2], dtype=i64, data="eJxjYIAAAAAIAAE="}
  %c = gather(%b, %l)
  %y = pointwise(%x, %c) {steps=[add($1)]}
  return %y
}
"""
    )
    after = run_passes(graph, ["assign_dtypes"])
    assert str(after.types[after.producers["y"].inputs[1]]) == "f32[2]"
