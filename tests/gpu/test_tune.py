"""The tuner and the ceilings on a real card."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from vitc.bench.ceilings import measure_ceilings
from vitc.codegen.kernel import Kernel, KernelCall
from vitc.codegen.records import Choice, fastest
from vitc.codegen.targets.cuda import name_for
from vitc.codegen.targets.gpu.attention import GpuAttention
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.codegen.targets.gpu.sm90_gather import Sm90GatherGemm
from vitc.codegen.targets.gpu.sm90_gemm import Sm90Gemm
from vitc.compiler import toolchain_of
from vitc.devices import Device
from vitc.ir.text import parse_graph
from vitc.options import checked_options
from vitc.tune import tune_graph

# A plain product, an attention that is none of Hopper's own (it has a bias), a patch embedding.
CUT = "map([B,3,64,224], reshape([B,3,4,16,14,16]), permute([0,2,4,1,3,5]), reshape([B,56,768]))"
GRAPH = f"""
graph g(%x: f16[B,197,768], %q: f16[B,12,197,64], %v: f16[B,12,197,64], %i: f16[B,3,64,224]) {{
  weight %w: f16[2304,768]
  weight %b: f32[2304]
  weight %t: f32[12,197,197]
  weight %p: f16[768,768]
  %y = linear(%x, %w, %b) {{steps=[add($2)]}}
  %z = attention(%q, %q, %v, %t) {{scale=0.125, bias=true}}
  %m = move(%i) {{map={CUT}}}
  %e = linear(%m, %p)
  return %y, %z, %e
}}
"""
FLOPS = {
    "y": 2 * 8 * 197 * 768 * 2304,
    "z": 4 * 8 * 12 * 197 * 197 * 64,
    "e": 2 * 8 * 56 * 768 * 768,
}


def test_choices_are_tuned_on_the_card(
    nvidia: Device, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("VITC_CACHE", str(tmp_path))
    for kernel in (GpuGemm, GpuAttention, Sm90Gemm, Sm90GatherGemm):
        whole = kernel.choice

        def few(self: Kernel, call: KernelCall, batch: int, whole: Any = whole) -> Choice:
            choice = whole(self, call, batch)
            return replace(choice, names=(*choice.names[:3], choice.names[-1]))

        monkeypatch.setattr(kernel, "choice", few)
    ceilings = measure_ceilings(torch.device("cuda"), "float16", threads=1)
    assert 5e12 < ceilings.flops < 5e15
    assert 1e11 < ceilings.bytes < 2e13
    options = checked_options(
        8, name_for(nvidia.arch), "float16", None, None, "embedded", (), None, None
    )
    report = tune_graph(parse_graph(GRAPH), options, toolchain=toolchain_of(options))
    assert report.device == nvidia.name
    assert len(report.tuned) == len(FLOPS)
    for item in report.tuned:
        assert not item.wrong
        assert set(item.us) == set(item.work.choice.names)
        flops = FLOPS[item.work.call.node.output] / (item.us[item.best] * 1e-6)
        assert ceilings.flops / 500 < flops < 1.3 * ceilings.flops
        assert fastest(item.work.choice)[0] == item.best
