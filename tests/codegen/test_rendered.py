"""Rendered kernels as text: what a change of a template or a kernel's parameters does to the source.

Nothing is compiled here; that the text computes what it should is tested by test_cpu_ops and
test_cuda_ops.
"""

from __future__ import annotations

from typing import Any

import pytest
from graphs import assign

from vitc.codegen.render import KERNEL
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.ir.text import print_node
from vitc.ir.types import DType

# A patch embedding read straight from the image, its rows moved behind the class token's place, with
# a table added and statistics, by which the next product normalises; then bias, GELU and a residual.
PRODUCTS = """
graph products(%x: f32[B,3,32,48]) {
  weight %w: f32[64,768]
  weight %table: f32[7,64]
  weight %v: f32[64,64]
  weight %b: f32[64]
  %m = move(%x) {map=map([B,3,32,48], reshape([B,3,2,16,3,16]), permute([0,2,4,1,3,5]), reshape([B,6,768]), pad(1,1,0))}
  %y, %s = linear(%m, %w, %table) {steps=[add($2)], stats=64}
  %z = linear(%y, %v, %s, %b, %y) {steps=[row_rstd($2, 64.0, 1e-6), add($3), gelu, add($4)]}
  return %z
}"""

# Queries, keys and values as views of one product, the heads stored side by side.
ATTENTION = """
graph attention(%x: f32[B,37,192]) {
  %q = move(%x) {map=map([B,37,192], reshape([B,37,3,2,32]), permute([2,0,3,1,4]), slice(0,0,1,1), reshape([B,2,37,32]))}
  %k = move(%x) {map=map([B,37,192], reshape([B,37,3,2,32]), permute([2,0,3,1,4]), slice(0,1,2,1), reshape([B,2,37,32]))}
  %v = move(%x) {map=map([B,37,192], reshape([B,37,3,2,32]), permute([2,0,3,1,4]), slice(0,2,3,1), reshape([B,2,37,32]))}
  %a = attention(%q, %k, %v) {scale=0.177}
  %y = move(%a) {map=map([B,2,37,32], permute([0,2,1,3]), reshape([B,37,64]))}
  return %y
}"""

# Shifted windows of an image, with a bias table and mask regions, back to where they came from.
WINDOWS = """
graph windows(%x: f32[B,8,6,192]) {
  weight %bias: f32[2,12,12]
  %regions = literal() {shape=[4, 12], dtype=i32, data="eNpjYCANMEIxE5FsZhyYDQdmgWJWNDY7FHOgsQEdSACN"}
  %w = move(%x) {map=map([B,8,6,192], roll(1,-2), roll(2,-1), reshape([B,2,4,2,3,192]), permute([0,1,3,2,4,5]), reshape([4B,12,3,2,32]), permute([2,0,3,1,4]))}
  %q = move(%w) {map=map([3,4B,2,12,32], slice(0,0,1,1), reshape([4B,2,12,32]))}
  %k = move(%w) {map=map([3,4B,2,12,32], slice(0,1,2,1), reshape([4B,2,12,32]))}
  %v = move(%w) {map=map([3,4B,2,12,32], slice(0,2,3,1), reshape([4B,2,12,32]))}
  %a = attention(%q, %k, %v, %bias, %regions) {scale=0.177, bias=true, regions=true}
  %y = move(%a) {map=map([4B,2,12,32], permute([0,2,1,3]), reshape([B,2,2,4,3,64]), permute([0,1,3,2,4,5]), reshape([B,8,6,64]), roll(1,2), roll(2,1))}
  return %y
}"""

# A patch merging whose layer norm is gone: the first product sums its rows up and stores them as the
# second reads them, four as one, which gathers their statistics.
MERGE = """
graph merge(%x: f32[B,4,6,64]) {
  weight %w: f32[64,64]
  weight %v: f32[32,256]
  %y, %s = linear(%x, %w) {stats=64, sums=true}
  %m = move(%y) {map=map([B,4,6,64], reshape([B,2,2,3,2,64]), permute([0,1,3,4,2,5]), reshape([B,2,3,256]))}
  %ms = move(%s) {map=map([B,4,6,2], reshape([B,2,2,3,2,2]), permute([0,1,3,4,2,5]), reshape([B,2,3,8]))}
  %z = linear(%m, %v, %ms) {steps=[layer_rstd($2, 256.0, 1e-5)]}
  return %z
}"""

TEXTS = {"products": PRODUCTS, "merge": MERGE, "attention": ATTENTION, "windows": WINDOWS}
KERNELS = {
    "products": ["gemm", "gemm"],
    "merge": ["gemm", "gemm"],
    "attention": ["attention"],
    "windows": ["attention"],
}
TARGETS = [
    ("cpu", DType.FLOAT32),
    ("cpu", DType.BFLOAT16),
    ("cuda:sm_80", DType.FLOAT16),
    ("cuda:sm_75", DType.FLOAT32),
]


def rendered(text: str, target: str, dtype: DType) -> str:
    """All kernels of the graph, each under its IR line, for the target's first instruction set."""
    device = find_target(target, (8,))
    selection = select(assign(text, dtype), device)
    parts: list[str] = []
    for call in selection.calls:
        part = next(iter(device.render(call).values()))
        assert KERNEL in part.body
        parts.append(f"// {print_node(call.node, selection.graph)}\n// {part.config}\n{part.body}")
    return "\n".join([*(f"// {line}" for line in selection.maps()), *parts])


@pytest.mark.parametrize("kernel", TEXTS)
@pytest.mark.parametrize(("target", "dtype"), TARGETS, ids=lambda p: getattr(p, "short", p))
def test_text(kernel: str, target: str, dtype: DType, golden: Any) -> None:
    golden.check(rendered(TEXTS[kernel], target, dtype), suffix=".cc")


@pytest.mark.parametrize("kernel", TEXTS)
def test_no_copies_are_made(kernel: str) -> None:
    """The maps are read and written by the kernels: no move is left to run."""
    for target, dtype in TARGETS:
        calls = select(assign(TEXTS[kernel], dtype), find_target(target, (8,))).calls
        assert [call.kernel.name for call in calls] == KERNELS[kernel]


@pytest.mark.parametrize("kernel", TEXTS)
def test_rendering_is_deterministic(kernel: str) -> None:
    """The text is the key of the build cache: it may depend on nothing but the graph."""
    for target, dtype in TARGETS:
        first, second = (rendered(TEXTS[kernel], target, dtype) for _ in range(2))
        assert first == second
