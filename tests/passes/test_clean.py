"""Clean-up, case by case; every rule application is interpreted on both sides."""

import pytest
from passes.support import difference, expect, graph_of, optimise

from vitc.ir.text import parse_graph
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import run_passes

CASES = {
    "moves_compose_to_slice_first": (
        """(%x: f32[B,5,18]) {
          %r = move(%x) {map=map([B,5,18], reshape([B,5,3,2,3]))}
          %p = move(%r) {map=map([B,5,3,2,3], permute([2,0,3,1,4]))}
          %s = move(%p) {map=map([3,B,2,5,3], slice(0,1,2,1))}
          %k = move(%s) {map=map([1,B,2,5,3], reshape([B,2,5,3]))}
          return %k
        }""",
        """%k = move(%x) {map=map([B, 5, 18], slice(2, 6, 12, 1), SPLIT, permute([0, 2, 1, 3]))}
        return %k""".replace("SPLIT", "reshape([B, 5, 2, 3])"),
    ),
    "permutes_cancel_through_pointwise": (
        """(%x: f32[B,4,5,3]) {
          weight %w: f32[3,1,1]
          weight %v: f32[6,1,1,3]
          %a = move(%x) {map=map([B,4,5,3], permute([0,3,1,2]))}
          %b = pointwise(%a, %w) {steps=[mul($1), relu]}
          %c = move(%b) {map=map([B,3,4,5], permute([0,2,3,1]))}
          %d = conv2d(%c, %v)
          return %d
        }""",
        """%b-3 = move(%w) {map=map([3, 1, 1], reshape([1, 1, 1, 3]))}
        %b-4 = pointwise(%x, %b-3) {steps=[mul($1), relu]}
        %d = conv2d(%b-4, %v)
        return %d""",
    ),
    "equal_nodes_are_one": (
        """(%x: f32[B,7]) {
          %a = norm(%x)
          %b = norm(%x)
          %c = pointwise(%a) {steps=[exp]}
          %d = pointwise(%b) {steps=[exp]}
          return %c, %d
        }""",
        """%a = norm(%x)
        %c = pointwise(%a) {steps=[exp]}
        %d = pointwise(%a) {steps=[exp]}
        return %c, %d""",
    ),
    "constants_of_steps": (
        """(%x: f32[B,7]) {
          %a = pointwise(%x) {steps=[scale(2.0), scale(0.5), neg, shift(1.0), shift(2.0)]}
          %b = pointwise(%a) {steps=[gelu]}
          %c = pointwise(%b)
          return %c
        }""",
        """%c = pointwise(%x) {steps=[scale(-1.0), shift(3.0), gelu]}
        return %c""",
    ),
    "reshape_reaches_the_move": (
        """(%x: f32[B,9,4], %y: f32[B,7]) {
          weight %w: f32[7,4]
          weight %b: f32[7]
          %s = move(%x) {map=map([B,9,4], slice(1,8,9,1))}
          %n = norm(%s)
          %l = linear(%n, %w, %b) {steps=[add($2)]}
          %r = move(%l) {map=map([B,1,7], reshape([B,7]))}
          %o = pointwise(%r, %y) {steps=[add($1)]}
          return %o
        }""",
        """%s-2 = move(%x) {map=map([B, 9, 4], slice(1, 8, 9, 1), reshape([B, 4]))}
        %n-2 = norm(%s-2)
        %r = linear(%n-2, %w, %b) {steps=[add($2)]}
        %o = pointwise(%r, %y) {steps=[add($1)]}
        return %o""",
    ),
    "reduce_takes_the_permute": (
        """(%x: f32[B,4,5,3]) {
          %a = move(%x) {map=map([B,4,5,3], permute([0,3,1,2]))}
          %b = reduce(%a) {axes=[2,3]}
          return %b
        }""",
        """%b = reduce(%x) {axes=[1, 2]}
        return %b""",
    ),
    "slice_of_concat": (
        """(%x: f32[B,4,3], %y: f32[B,5,3]) {
          %a = concat(%x, %y) {axis=1}
          %b = concat(%a, %x) {axis=1}
          %c = move(%b) {map=map([B,13,3], slice(1,5,9,2))}
          return %c
        }""",
        """%c = move(%y) {map=map([B, 5, 3], slice(1, 1, 4, 2))}
        return %c""",
    ),
}


@pytest.mark.parametrize("name", CASES)
def test_case(name: str) -> None:
    before, after = CASES[name]
    expect(optimise(before, ["clean"]), after)


def test_outputs_keep_their_names() -> None:
    graph = optimise("(%x: f32[B,7]) {\n%a = norm(%x)\n%y = pointwise(%a)\nreturn %y\n}", ["clean"])
    assert graph.outputs == ("y",)
    assert graph.nodes[0].outputs == ("y",)


@pytest.mark.parametrize("rule", ["compose_moves", "share_equal", "reshape_first", "permute_last"])
def test_rules_can_be_disabled(rule: str) -> None:
    for before, _ in CASES.values():
        graph = graph_of(before)
        after = run_passes(graph, ["clean"], PassOptions(disable=frozenset({rule}), check=True))
        assert difference(graph, after) < 1e-10


def test_a_clean_graph_is_left_alone() -> None:
    for before, _ in CASES.values():
        once = run_passes(parse_graph("graph case" + before), ["clean"])
        assert run_passes(once, ["clean"]) is once
