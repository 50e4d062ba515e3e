"""Which attention tile each card gets, and that GPU selection refuses what offsets cannot reach."""

from __future__ import annotations

import pytest

from vitc.codegen.select import Selection, select
from vitc.codegen.targets import find_target
from vitc.errors import UnsupportedModelError
from vitc.ir.text import parse_graph

ATTENTION = """
graph attention(%q: {t}[B,12,{n},{d}], %k: {t}[B,12,{n},{d}], %v: {t}[B,12,{n},{d}]) {{
  %a = attention(%q, %k, %v) {{scale=0.125}}
  return %a
}}
"""
LINEAR = """
graph g(%x: f16[B,512,1024]) {
  weight %w: f16[2048,1024]
  %y = linear(%x, %w)
  return %y
}
"""
CROP = """
graph g(%x: f32[B,1024,1024]) {
  %m = move(%x) {map=map([B,1024,1024], slice(1,0,1,1), reshape([B,1024]))}
  %y = softmax(%m)
  return %y
}
"""
WEIGHT = """
graph g(%x: f16[B,8]) {
  weight %w: f16[268435456,8]
  %y = linear(%x, %w)
  return %y
}
"""


def selected(text: str, target: str, batch: int) -> Selection:
    return select(parse_graph(text), find_target(target, (1, batch)))


@pytest.mark.parametrize(
    ("arch", "dtype", "keys", "depth", "block", "warps"),
    [
        ("sm_75", "f16", 197, 64, 208, 4),
        ("sm_75", "f16", 256, 64, 64, 4),  # one pass takes 72 KiB
        ("sm_75", "f16", 577, 64, 64, 4),
        ("sm_75", "f32", 197, 64, 48, 4),
        ("sm_75", "f32", 197, 128, 16, 4),
        ("sm_80", "f32", 49, 64, 32, 4),
        ("sm_80", "f32", 48, 64, 32, 3),
        ("sm_80", "tf32", 197, 64, 208, 4),
        ("sm_86", "f16", 197, 64, 208, 4),
        ("sm_86", "f16", 577, 64, 64, 4),
        ("sm_86", "f32", 197, 64, 64, 4),
    ],
)
def test_attention_tile(
    arch: str, dtype: str, keys: int, depth: int, block: int, warps: int
) -> None:
    target = find_target(f"cuda:{arch}", (8,))
    (call,) = select(parse_graph(ATTENTION.format(t=dtype, n=keys, d=depth)), target).calls
    expected = f"{keys}, {keys}, {depth}, {depth}, {block}, {warps}"
    assert expected in target.render(call)[arch].config


def test_attention_that_fits_no_tile_is_refused() -> None:
    """16 keys and values in two stages take 64 KiB, without the queries."""
    text = ATTENTION.format(t="f32", n=197, d=256)
    with pytest.raises(UnsupportedModelError, match="64 KiB of shared memory of sm_75"):
        selected(text, "cuda:sm_75", 8)


@pytest.mark.parametrize("target", ["cuda:sm_80", "cuda:sm_90a", "cuda:sm_80:emulated"])
@pytest.mark.parametrize(
    ("text", "batch", "message"),
    [
        (LINEAR, 2048, "%y has 2147483648 elements at batch 2048"),
        (LINEAR, 4096, "%x has 2147483648 elements at batch 4096"),
        (CROP, 2048, "%x has 2147483648 elements at batch 2048"),
        (WEIGHT, 1, "%w has 2147483648 elements"),
    ],
)
def test_offsets_beyond_32_bits_are_refused(
    target: str, text: str, batch: int, message: str
) -> None:
    with pytest.raises(UnsupportedModelError, match=message) as caught:
        selected(text, target, batch)
    assert "fewer than 2^31" in str(caught.value)


@pytest.mark.parametrize("text", [LINEAR, CROP])
def test_the_largest_batch_that_fits_is_taken(text: str) -> None:
    assert selected(text, "cuda:sm_80", 2047).calls
