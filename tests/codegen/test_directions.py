"""In which direction kernels go: each begins where the one before it has ended."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from graphs import errors

from vitc.codegen.kernel import KernelCall
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.ir.text import parse_graph

HEADS = "reshape([B,197,3,3,64]), permute([2,0,3,1,4])"
WEIGHTS = """
  weight %embed: f16[192,768]
  weight %table: f32[1,197,192]
  weight %qkv: f16[576,192]
  weight %proj: f16[192,192]
  weight %fc1: f16[768,192]
  weight %fc2: f16[192,768]
  weight %b1: f16[192]
  weight %b3: f16[576]
  weight %b4: f16[768]"""
# Names of products of the i-th block end in i.
BLOCK = """
  %qkv{i} = linear(%x{i}, %qkv, %s{i}, %b3) {{steps=[row_rstd($2, 192.0, 1e-6), add($3)]}}
  %q{i} = move(%qkv{i}) {{map=map([B,197,576], {heads}, slice(0,0,1,1), reshape([B,3,197,64]))}}
  %k{i} = move(%qkv{i}) {{map=map([B,197,576], {heads}, slice(0,1,2,1), reshape([B,3,197,64]))}}
  %v{i} = move(%qkv{i}) {{map=map([B,197,576], {heads}, slice(0,2,3,1), reshape([B,3,197,64]))}}
  %a{i} = attention(%q{i}, %k{i}, %v{i}) {{scale=0.01}}
  %m{i} = move(%a{i}) {{map=map([B,3,197,64], permute([0,2,1,3]), reshape([B,197,192]))}}
  %proj{i}, %t{i} = linear(%m{i}, %proj, %b1, %x{i}) {{steps=[add($2), add($3)], stats=32}}
  %fc1{i} = linear(%proj{i}, %fc1, %t{i}, %b4) {{steps=[row_rstd($2, 192.0, 1e-6), add($3), gelu]}}
  %x{next}, %s{next} = linear(%fc1{i}, %fc2, %b1, %proj{i}) {{steps=[add($2), add($3)], stats=32}}"""
VIT = f"""
graph vit(%image: f16[B,3,224,224]) {{{WEIGHTS}
  %p = move(%image) {{map=map([B,3,224,224], reshape([B,3,14,16,14,16]), permute([0,2,4,1,3,5]), reshape([B,196,768]), pad(1,1,0))}}
  %x0, %s0 = linear(%p, %embed, %table) {{steps=[add($2)], stats=32}}{BLOCK.format(i=0, next=1, heads=HEADS)}{BLOCK.format(i=1, next=2, heads=HEADS)}
  return %x2
}}"""
CHAIN = """
graph chain(%x: f16[B,197,192]) {
  weight %w: f16[192,192]
  %one = linear(%x, %w)
  %two = linear(%one, %w)
  %three = linear(%two, %w)
  return %three
}"""
LONE = """
graph lone(%x: f16[B,197,192]) {
  weight %w: f16[192,192]
  %one = linear(%x, %w)
  return %one
}"""


def calls(text: str, target: str = "cuda:sm_90a") -> tuple[KernelCall, ...]:
    return select(parse_graph(text), find_target(target, (256,))).calls


def backwards(text: str) -> dict[str, bool]:
    return {call.node.output: call.backwards for call in calls(text)}


def test_a_block_of_a_vit() -> None:
    """Attention goes forwards, so what it reads was written backwards, and what reads it goes
    backwards; fc1 and fc2 take turns.
    """
    found = [(call.kernel.name, call.node.output, call.backwards) for call in calls(VIT)]
    assert found == [
        ("gather_gemm", "x0", False),
        ("sm90_gemm", "qkv0", True),
        ("sm90_attention", "a0", False),
        ("sm90_gemm", "proj0", True),
        ("sm90_gemm", "fc10", False),
        ("sm90_gemm", "x1", True),
        ("sm90_gemm", "qkv1", True),  # and so does the product before
        ("sm90_attention", "a1", False),
        ("sm90_gemm", "proj1", True),
        ("sm90_gemm", "fc11", False),
        ("sm90_gemm", "x2", True),
    ]


def test_products_in_a_row_alternate() -> None:
    assert backwards(CHAIN) == {"one": False, "two": True, "three": False}


def test_the_first_product_goes_forwards() -> None:
    assert backwards(LONE) == {"one": False}


@pytest.mark.parametrize("text", [VIT, CHAIN, LONE])
def test_kernels_that_cannot_turn_go_forwards(text: str) -> None:
    text = text.replace("stats=32", "stats=64")  # the slices of that target
    assert not any(call.backwards for call in calls(text, "cuda:sm_80"))


def test_the_tile_of_a_product_turns_with_it() -> None:
    seen = set[bool]()
    for call in calls(VIT):
        if call.kernel.name != "sm90_gemm":
            continue
        flags = re.findall(r"GemmTile<.*, (true|false)>", call.kernel.render(call).body)
        assert flags == ["true" if call.backwards else "false"], call.node.output
        seen.add(call.backwards)
    assert seen == {False, True}


def test_results_are_those_of_forwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Residuals in place; emulated. Errors of ten kernels, each of which rounds, add up."""
    target = "cuda:sm_90a:emulated"
    found = errors(VIT, tmp_path, batch=2, target=target)
    assert max(found.values()) < 8e-3, found
    monkeypatch.setattr("vitc.codegen.select._directed", tuple)
    (tmp_path / "forwards").mkdir()
    assert errors(VIT, tmp_path / "forwards", batch=2, target=target) == found
