"""A trial has a site's operands as the model has them, and shows what is wrong."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from tune.support import (
    ATTENTION,
    GRAPH,
    PATCHES,
    RESIDUAL,
    WINDOWS,
    FakeCard,
    configurations,
    tune,
)

from vitc.codegen.kernel import KernelCall, Rendered
from vitc.codegen.select import select
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.compiler import toolchain_of
from vitc.ir.graph import Graph
from vitc.ir.interp import interpret
from vitc.ir.text import parse_graph, print_attributes, print_graph
from vitc.ir.types import Batch
from vitc.ops import Move
from vitc.options import CompileOptions, checked_options
from vitc.tune import trial
from vitc.tune.run import choices

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")


def test_attention_with_every_term(options: CompileOptions) -> None:
    """Windows lead, the bias is packed, labels are integers: each configuration agrees."""
    graph = parse_graph(ATTENTION)
    (work,) = choices(graph, options)
    assert work.choice.size == 3 * 2 * 2
    assert "[bias,regions]" in work.choice.problem
    before = configurations(graph, options)
    report = tune(graph, options, FakeCard(fast=work.choice.names[1]))
    assert not report.tuned[0].wrong
    assert set(report.tuned[0].us) == set(work.choice.names)
    assert configurations(graph, options) != before


def test_gathered_rows_take_a_portable_tile_where_it_was_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitc.codegen.targets.gpu.sm90_gather._MOST", 1)
    target = "cuda:sm_90a:emulated"
    options = checked_options(3, target, "float16", None, None, "embedded", (), None, None)
    graph = parse_graph(PATCHES)
    (work,) = choices(graph, options)
    _, *portable = work.choice.names
    assert len(portable) == 3
    assert "GatherTile" in configurations(graph, options)[0]
    stored, maps = work.call.inputs[0], [move.op for move in trial.trial_graph(work)[0].nodes]
    assert maps.count(Move(stored.map)) == work.copies == 2
    assert "x0_0: f16[B,8,48]" in print_graph(trial.trial_graph(work)[0])
    report = tune(graph, options, FakeCard(fast=portable[1]))
    assert not report.tuned[0].wrong
    assert report.tuned[0].best == portable[1]
    assert "GatherTile" not in configurations(graph, options)[0]


def test_results_are_written_as_in_the_model(options: CompileOptions, tmp_path: Path) -> None:
    """Windows go back to their image; what is cut off is neither stored nor compared."""
    model = parse_graph(WINDOWS)
    (work,) = choices(model, options)
    (stored,) = work.call.outputs
    assert stored.type.shape == (Batch(), 3, 3, 32)
    assert work.choice.problem.endswith(f" out{print_attributes(Move(stored.map))}")
    graph, names = trial.trial_graph(work)
    calls = select(graph, work.target).calls
    assert len(calls) == len(names) == len(work.choice.names) * work.copies + 1
    assert {call.outputs[0].map for call in calls} == {stored.map}
    library = tmp_path / "trial.so"
    trial.build_trial(work, options, toolchain_of(options), library)
    tried = trial.Trial(work, library)
    try:
        images = tried.inputs[0].double().numpy()
        expected = interpret(model, {"x": images}, {})["z"]
        for name in work.choice.names:
            assert trial.difference(tried.results(name), [expected.reshape(-1)]) < 2e-3
    finally:
        tried.close()


def test_a_residual_is_written_over(options: CompileOptions, tmp_path: Path) -> None:
    """As in a model; and what is compared is of operands as they were drawn."""
    model = parse_graph(RESIDUAL)
    (work,) = choices(model, options)
    assert work.overwritten == (3,)
    library = tmp_path / "trial.so"
    trial.build_trial(work, options, toolchain_of(options), library)
    tried = trial.Trial(work, library)
    try:
        steps = tried.module.manifest["steps"]
        assert len(steps) == (len(work.choice.names) + 1) * 2 * work.copies - 2 * (work.copies - 1)
        for name in work.choice.names:
            first = tried._first(name)
            timed = [
                [(a["space"], a["offset"]) for a in step["args"][3:5]]
                for step in steps[first : first + work.copies]
            ]
            assert all(residual == result for residual, result in timed)
            assert len({residual for residual, _ in timed}) == work.copies
        weights = {port.name: trial._constant(port) for port in trial.trial_graph(work)[0].weights}
        inputs = dict(zip("xr", (t.double().numpy() for t in tried.inputs[:2]), strict=True))
        expected = interpret(model, inputs, {"w": weights["w1"], "b": weights["w2"]})["y"]
        for name in work.choice.names:
            for _ in range(3):
                tried.runner(name)()
            assert trial.difference(tried.results(name), [expected.reshape(-1)]) < 2e-3
    finally:
        tried.close()


def test_statistics_scale_each_row_its_own_way(options: CompileOptions) -> None:
    """None is clamped to no variance, and both squares and sums matter."""
    graph = parse_graph(
        GRAPH.replace("stats=64", "stats=64, sums=true").replace("row_r", "layer_r")
    )
    site = choices(graph, options)[1].call.site
    assert trial._statistics(site) == {"x2": 64.0}
    draw = torch.Generator().manual_seed(0)
    stats = trial._activation((40, 24), "float32", 64.0, draw).double().numpy()
    squares, sums = (stats[:, i::2].sum(1) / (12 * 64) for i in (0, 1))
    variance = squares - sums**2
    assert len(set(variance)) == len(variance)
    assert variance.std() > 0.1 * variance.mean()
    assert (variance > 0.7 * squares).all()
    assert (variance < 0.99 * squares).all()


def test_a_wrong_configuration_is_never_timed(
    graph: Graph, options: CompileOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One forgets the bias, one writes nothing at all."""
    first, second = choices(graph, options)
    wrong, silent = second.choice.names[1:]
    whole = GpuGemm.render_choice

    def broken(self: GpuGemm, call: KernelCall, name: str) -> Rendered:
        good = whole(self, call, name)
        if "row_rstd" not in str(call.site.op):
            return good
        if name == wrong:
            assert "call.args[3]" in good.body or "arg<const float>(call, 3)" in good.body
            return replace(good, body=good.body.replace("(call, 3)", "(call, 2)"))
        if name == silent:
            return replace(good, body=good.body.replace("int(call.batch)", "0 * int(call.batch)"))
        return good

    monkeypatch.setattr(GpuGemm, "render_choice", broken)
    card = FakeCard(fast=wrong)
    report = tune(graph, options, card)
    assert set(report.tuned[1].wrong) == {wrong, silent}
    assert "differs" in report.tuned[1].wrong[wrong]
    assert card.asked == [set(first.choice.names), {second.choice.names[0]}]
    assert wrong not in json.loads(report.path.read_text())["problems"][1]["us"]


def test_copies_exceed_the_cache(
    graph: Graph, options: CompileOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "COPIES_BYTES", 50 << 20)
    work = replace(choices(graph, options)[0], batch=10_000)
    size = sum(type_.nbytes(work.batch) for type_ in work.call.site.inputs)
    assert 2 < work.copies < trial.MOST_COPIES
    assert (work.copies - 1) * size < 50 << 20 <= work.copies * size
    assert replace(work, batch=1).copies == trial.MOST_COPIES
    assert replace(work, batch=1 << 22).copies == 2


def test_sections_cover_the_ends() -> None:
    assert trial._sections(100) == [(0, 100)]
    size = 100 << 20
    parts = trial._sections(size)
    assert parts[0][0] == 0
    assert sum(parts[-1]) == size
    assert all(a + n <= b for (a, n), (b, _) in pairwise(parts))
