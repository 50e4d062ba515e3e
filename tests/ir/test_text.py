"""The text form: prints, parses, and refuses what is wrong with a message that names it."""

import numpy as np
import pytest

from vitc.errors import GraphError
from vitc.ir.interp import interpret, random_arrays
from vitc.ir.text import parse_graph, print_graph
from vitc.ir.verify import verify

BLOCK = """
graph block(%x: f32[B,5,8]) {
  weight %w: f32[24,8]
  weight %b: f32[24]
  weight %wo: f32[8,8]
  %n, %n.stats = norm(%x) {stats=4, eps=1e-05} : f32[B,5,8], f32[B,5,2] @ blocks.0.norm
  %qkv = linear(%n, %w, %b) {steps=[add($2), scale(0.5)]} : f32[B,5,24]
  %q = move(%qkv) {map=map([B,5,24], reshape([B,5,3,2,4]), permute([2,0,3,1,4]), slice(0, 0, 1, 1), reshape([B,2,5,4]))}
  %k = move(%qkv) {map=map([B,5,24], reshape([B,5,3,2,4]), permute([2,0,3,1,4]), slice(0, 1, 2, 1), reshape([B,2,5,4]))}
  %a = attention(%q, %k, %k) {scale=0.5}
  %m = move(%a) {map=map([B,2,5,4], permute([0,2,1,3]), reshape([B,5,8]))}
  %y = linear(%m, %wo, %x) {steps=[gelu, add($2)]} @ blocks.0.attn.proj
  %l = literal() {shape=[2], dtype=i64, data="eJxjYIAAAAAIAAE="}
  return %y, %n.stats
}
"""


def test_round_trip() -> None:
    graph = parse_graph(BLOCK)
    verify(graph)
    assert parse_graph(print_graph(graph)) == graph
    assert str(graph.types["y"]) == "f32[B,5,8]"


def test_meaning_of_the_text_is_that_of_its_reprint() -> None:
    graph = parse_graph(BLOCK).without_dead_nodes()
    inputs, weights = random_arrays(graph, 3, 0)
    first = interpret(graph, inputs, weights)
    second = interpret(parse_graph(print_graph(graph)), inputs, weights)
    assert all(np.array_equal(first[name], second[name]) for name in graph.outputs)


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("norm(%x)", "nrom(%x)", "line 6: unknown op 'nrom'"),
        ("gelu, add($2)", "gelo, add($2)", "unknown name 'gelo'"),
        ("%y = linear(%m, %wo", "%y = linear(%zz, %wo", "zz"),
        (
            "f32[B,5,24]\n",
            "f32[B,5,25]\n",
            r"%qkv is f32\[B,5,24\], the text says f32\[B,5,25\]",
        ),
        ("weight %wo: f32[8,8]", "weight %wo: f32[8,7]", "x has 8 channels, w takes 7"),
        ("}\n\n", "", "ends before"),
    ],
)
def test_errors_name_the_place(old: str, new: str, message: str) -> None:
    text = (BLOCK + "\n").replace(old, new)
    assert text != BLOCK + "\n"
    with pytest.raises(GraphError, match=message):
        parse_graph(text)
