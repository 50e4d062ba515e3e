"""What the tests of the tuner share: graphs with choices, and a card that says what it is told."""

from __future__ import annotations

from collections.abc import Mapping

from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.compiler import toolchain_of
from vitc.ir.graph import Graph
from vitc.options import CompileOptions
from vitc.tune import TuneReport, TuningDevice, tune_graph

TARGET = "cuda:sm_80:emulated"
# Two equal products (one choice), the second of which reads statistics and a residual.
GRAPH = """
graph g(%x: f16[B,5,64]) {
  weight %w: f16[64,64]
  weight %b: f32[64]
  %y, %s = linear(%x, %w, %b) {steps=[add($2)], stats=64}
  %z = linear(%y, %w, %s, %b, %x) {steps=[row_rstd($2, 64.0, 1e-06), add($3), add($4)]}
  %u = linear(%z, %w, %s, %b, %x) {steps=[row_rstd($2, 64.0, 1e-06), add($3), add($4)]}
  return %u
}
"""
RESIDUAL = """
graph g(%x: f16[B,5,64], %r: f16[B,5,64]) {
  weight %w: f16[64,64]
  weight %b: f32[64]
  %y = linear(%x, %w, %b, %r) {steps=[add($2), add($3)]}
  return %y
}
"""
ATTENTION = """
graph g(%x: f16[B,2,2,20,16]) {
  weight %bias: f32[2,20,20]
  weight %regions: i32[2,20]
  %q = move(%x) {map=map([B,2,2,20,16], reshape([2B,2,20,16]))}
  %y = attention(%q, %q, %q, %bias, %regions) {scale=0.25, bias=true, regions=true}
  %z = move(%y) {map=map([2B,2,20,16], reshape([B,2,2,20,16]))}
  return %z
}
"""
# The same attention on heads that lie dense, and in the rows of one product.
HEADS = """
graph g(%q: f16[B,2,20,16], %k: f16[B,2,20,16], %v: f16[B,2,20,16]) {
  %y = attention(%q, %k, %v) {scale=0.25}
  return %y
}
"""
QKV = """
graph g(%x: f16[B,20,96]) {
  %q = move(%x) {map=map([B,20,96], slice(2,0,32,1), reshape([B,20,2,16]), permute([0,2,1,3]))}
  %k = move(%x) {map=map([B,20,96], slice(2,32,64,1), reshape([B,20,2,16]), permute([0,2,1,3]))}
  %v = move(%x) {map=map([B,20,96], slice(2,64,96,1), reshape([B,20,2,16]), permute([0,2,1,3]))}
  %y = attention(%q, %k, %v) {scale=0.25}
  %z = move(%y) {map=map([B,2,20,16], permute([0,2,1,3]), reshape([B,20,32]))}
  return %z
}
"""
# Windows of a padded image, stored where they came from, without the padding.
WINDOWS = """
graph g(%x: f16[B,3,3,32]) {
  %q = move(%x) {map=map([B,3,3,32], pad(1,0,1), pad(2,0,1), reshape([B,2,2,2,2,2,16]), permute([0,1,3,5,2,4,6]), reshape([4B,2,4,16]))}
  %y = attention(%q, %q, %q) {scale=0.25}
  %z = move(%y) {map=map([4B,2,4,16], reshape([B,2,2,2,2,2,16]), permute([0,1,4,2,5,3,6]), reshape([B,4,4,32]), slice(1,0,3,1), slice(2,0,3,1))}
  return %z
}
"""  # noqa: E501
# Patches of images: Hopper's own tiles beside the portable ones.
PATCHES = """
graph g(%x: f16[B,8,48]) {
  weight %w: f16[32,64]
  %m = move(%x) {map=map([B,8,48], reshape([B,8,6,8]), permute([0,2,1,3]), reshape([B,6,64]))}
  %y = linear(%m, %w)
  return %y
}
"""
SLOW = 100.0


class FakeCard:
    """Every configuration takes SLOW microseconds but `fast`; `asked` are those it had to time."""

    def __init__(self, fast: str = "") -> None:
        self.fast = fast
        self.asked: list[set[str]] = []
        self.device = TuningDevice("Test Card", "99.1", self.times)

    def times(self, runs: Mapping[str, object], launches: int) -> dict[str, float]:
        assert launches == 2
        self.asked.append(set(runs))
        for run in runs.values():
            run()  # type: ignore[operator]
        return {name: 1.0 if name == self.fast else SLOW for name in runs}


def tune(
    graph: Graph, options: CompileOptions, card: FakeCard, *, only: str = "", force: bool = False
) -> TuneReport:
    return tune_graph(
        graph,
        options,
        toolchain=toolchain_of(options),
        device=card.device,
        only=only,
        force=force,
    )


def configurations(graph: Graph, options: CompileOptions) -> list[str]:
    target = find_target(options.target, options.batches)
    return [target.render(call)[target.isas[0]].config for call in select(graph, target).calls]
