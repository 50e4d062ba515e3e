"""The tuner on the emulated GPU, with a clock that says what it is told."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from verify.fakes import torch_model

import vitc
import vitc.tune
from vitc.codegen import records
from vitc.codegen.kernel import Kernel, KernelCall, Rendered
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu.attention import GpuAttention
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.compiler import toolchain_of
from vitc.errors import DeviceError, InputError, LoadError
from vitc.ir.graph import Graph
from vitc.ir.text import parse_graph, print_graph
from vitc.ops import Move
from vitc.options import CompileOptions, checked_options
from vitc.tune import TuningDevice, device, find_device, trial, tune_graph
from vitc.tune.run import choices

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")

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
REGENERATE = (
    "vitc tune vit_base_patch16_224 vit_large_patch16_384 --batch 1,8,32,64,256 --target "
    "cuda:sm_90a --records vitc/codegen/targets/gpu/records/h100.json"
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No records at first; three configurations, so that few kernels are built, and once."""
    monkeypatch.setenv("VITC_CACHE", str(cache))
    shutil.rmtree(cache / "records", ignore_errors=True)
    for kernel in (GpuGemm, GpuAttention):
        whole = kernel.choice

        def few(self: Kernel, call: KernelCall, batch: int, whole: Any = whole) -> records.Choice:
            choice = whole(self, call, batch)
            return replace(choice, names=choice.names[:3])

        monkeypatch.setattr(kernel, "choice", few)
    monkeypatch.setattr(trial, "COPIES_BYTES", 1)


@pytest.fixture
def graph() -> Graph:
    return parse_graph(GRAPH)


@pytest.fixture
def options() -> CompileOptions:
    return checked_options(3, TARGET, "float16", None, None, "embedded", (), None, None)


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


def tune(graph: Graph, options: CompileOptions, card: FakeCard, **more: bool) -> object:
    return tune_graph(graph, options, toolchain=toolchain_of(options), device=card.device, **more)


def configurations(graph: Graph, options: CompileOptions) -> list[str]:
    target = find_target(options.target, options.batches)
    return [target.render(call)[target.isas[0]].config for call in select(graph, target).calls]


def test_the_fastest_is_recorded_and_then_compiled(graph: Graph, options: CompileOptions) -> None:
    first, second = choices(graph, options)
    assert (first.choice.size, second.choice.size) == (15, 15)
    third = second.choice.names[2]
    before = configurations(graph, options)
    card = FakeCard(fast=third)
    report = tune(graph, options, card)
    assert [item.default for item in report.tuned] == [w.choice.names[0] for w in (first, second)]
    assert report.tuned[1].best == third
    assert report.tuned[1].gain == SLOW
    assert not any(item.wrong for item in report.tuned)
    assert card.asked == [set(first.choice.names), set(second.choice.names)]
    after = configurations(graph, options)
    assert after[1] == after[2] != before[1]

    stored = json.loads(report.path.read_text())
    assert (stored["device"], stored["arch"], stored["toolkit"]) == ("Test Card", "sm_80", "99.1")
    assert {e["problem"] for e in stored["problems"]} == {
        first.choice.problem, second.choice.problem
    }  # fmt: skip
    assert json.dumps(report.to_json())

    again = FakeCard()
    assert tune(graph, options, again).known == 2
    assert again.asked == []
    assert tune(graph, options, again, force=True).known == 0
    assert len(again.asked) == 2


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


def test_gathered_rows_take_hoppers_tile_where_it_was_faster(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("vitc.codegen.targets.gpu.sm90_gather._MOST", 1)
    target = "cuda:sm_90a:emulated"
    options = checked_options(3, target, "float16", None, None, "embedded", (), None, None)
    graph = parse_graph(PATCHES)
    (work,) = choices(graph, options)
    *portable, hoppers = work.choice.names
    assert len(portable) == 3
    assert "GatherTile" not in configurations(graph, options)[0]
    stored, maps = work.call.inputs[0], [move.op for move in trial.trial_graph(work)[0].nodes]
    assert maps.count(Move(stored.map)) == work.copies == 2
    assert "x0_0: f16[B,8,48]" in print_graph(trial.trial_graph(work)[0])
    report = tune(graph, options, FakeCard(fast=hoppers))
    assert not report.tuned[0].wrong
    assert report.tuned[0].best == hoppers
    assert "GatherTile" in configurations(graph, options)[0]


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


def test_times_of_other_headers_are_forgotten(
    graph: Graph, options: CompileOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    fast = choices(graph, options)[1].choice.names[2]
    report = tune(graph, options, FakeCard(fast))
    chosen = configurations(graph, options)
    stored = json.loads(report.path.read_text())
    stored["kernels"]["gemm"] = "0" * 16
    report.path.write_text(json.dumps(stored))
    assert configurations(graph, options) != chosen
    assert tune(graph, options, FakeCard(fast)).known == 0
    assert configurations(graph, options) == chosen


def test_a_record_speaks_for_sizes_near_it(graph: Graph, options: CompileOptions) -> None:
    choice = choices(graph, options)[1].choice
    path = records.user_file("Test Card", "sm_80", "99.1")
    digest = records.kernel_digest(choice.headers)
    about = {"device": "Test Card", "arch": "sm_80", "toolkit": "99.1", "date": ""}
    measured = [
        records.Measured("gemm", choice.problem, 100, {"a": 2.0, "b": 1.0}),
        records.Measured("gemm", choice.problem, 110, {"a": 1.0, "b": 2.0}),
    ]
    records.store(path, about, {"gemm": digest}, measured)
    for size, expected in ((99, ["b", "a"]), (120, ["a", "b"]), (130, []), (80, [])):
        assert records.fastest(replace(choice, size=size)) == expected
    assert records.fastest(replace(choice, size=100, arch="sm_90")) == []
    assert records.fastest(replace(choice, size=100, problem="other")) == []


def test_the_users_records_come_before_those_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    (entry, *_) = records.read(records.SHIPPED / "h100.json")["problems"]
    digest = records.read(records.SHIPPED / "h100.json")["kernels"]["sm90_gemm"]
    monkeypatch.setattr(records, "kernel_digest", lambda _: digest)
    choice = records.Choice("sm_90a", "sm90_gemm", (), entry["problem"], entry["size"])
    shipped = records.fastest(choice)
    assert shipped == sorted(entry["us"], key=entry["us"].get)
    mine = records.Measured("sm90_gemm", entry["problem"], entry["size"], {shipped[-1]: 1.0})
    for card in ("One", "Two"):
        about = {"device": card, "arch": "sm_90a", "toolkit": "13.0", "date": ""}
        path = records.user_file(card, "sm_90a", "13.0")
        records.store(path, about, {"sm90_gemm": digest}, [mine])
        mine = replace(mine, us={"two": 1.0})
    monkeypatch.setattr(records, "_here", lambda: ("One", "13.0"))
    assert records.fastest(choice) == [shipped[-1]]
    monkeypatch.setattr(records, "_here", lambda: ("Two", "13.0"))
    assert records.fastest(choice) == ["two"]


def test_shipped_times_are_of_the_shipped_kernels() -> None:
    """What to do when it fails is in the message."""
    headers = {
        choice.kernel: choice.headers
        for name in ("cuda:sm_80", "cuda:sm_90a")
        for text in (GRAPH, ATTENTION, PATCHES)
        for call in select(parse_graph(text), find_target(name, (8,))).calls
        if (choice := call.kernel.choice(call, 8))
    }
    assert set(headers) >= {"gemm", "attention", "sm90_gemm", "gather_gemm"}
    for path in records.SHIPPED.glob("*.json"):
        for kernel, digest in records.read(path)["kernels"].items():
            assert digest == records.kernel_digest(headers[kernel]), (
                f"{path.name}: {kernel} was measured with other headers, so its times are ignored; "
                f"measure again on that card: {REGENERATE}"
            )


def test_comments_and_layout_do_not_make_another_kernel() -> None:
    text = 'int f() {\n  return 1;  // one\n}\n/* two\nlines */ asm("a" "b");\n'
    same = 'int f() { return 1; }\nasm("a"\n    "b");'
    assert records.without_layout(text) == records.without_layout(same)
    assert records.without_layout(text) != records.without_layout(text.replace("1", "2"))


def test_a_damaged_record_is_named() -> None:
    path = records.user_file("Test Card", "sm_80", "99.1")
    path.parent.mkdir(parents=True)
    path.write_text("{")
    with pytest.raises(LoadError, match="Test-Card"):
        records.read(path)


@pytest.mark.parametrize(
    ("target", "error", "says"),
    [
        ("cpu", InputError, "nothing to tune"),
        ("cuda:sm_80:emulated", InputError, "runs on the CPU"),
        ("cuda:sm_80+sm_90", InputError, "one is tuned at a time"),
    ],
)
def test_what_cannot_be_tuned_says_why(target: str, error: type[Exception], says: str) -> None:
    options = checked_options(1, TARGET, None, None, None, "embedded", (), None, None)
    with pytest.raises(error, match=says):
        find_device(find_target(target), toolchain_of(options))


def test_without_the_card_it_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitc.devices import Device, Devices

    options = checked_options(1, TARGET, None, None, None, "embedded", (), None, None)
    toolchain, target = toolchain_of(options), find_target("cuda:sm_90a")
    monkeypatch.setattr(device, "nvidia_devices", lambda: Devices((), "no NVIDIA driver"))
    with pytest.raises(DeviceError, match="no NVIDIA GPU here: no NVIDIA driver"):
        find_device(target, toolchain)
    other = Device("nvidia", 0, "A100", "sm_80", 1, "")
    monkeypatch.setattr(device, "nvidia_devices", lambda: Devices((other,)))
    with pytest.raises(DeviceError, match="A100, which is sm_80"):
        find_device(target, toolchain)


def test_times_are_medians_of_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ten launches a replay; what is far behind in the first round has no further turn."""
    order: list[str] = []
    spans = {"a": [9.0, *([1.0] * 6), 100.0], "b": [8.0, *([2.0] * 7)], "c": [12.5]}
    graphs = {name: SimpleNamespace(name=name) for name in spans}
    for graph in graphs.values():
        graph.replay = graph

    def elapsed(graph: SimpleNamespace) -> float:
        order.append(graph.name)
        return spans[graph.name].pop(0)

    monkeypatch.setattr(device, "_capture", lambda run, launches: (graphs[run], 5))
    monkeypatch.setattr(device, "_elapsed", elapsed)
    found = device.cuda_times({name: name for name in graphs}, 2)  # type: ignore[dict-item]
    assert found == {"a": 100.0, "b": 200.0, "c": 1250.0}
    assert "".join(order) == "abc" + "abbaabbaabbaab"
    assert not any(spans.values())


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


def test_compile_tunes_before_it_selects(monkeypatch: pytest.MonkeyPatch) -> None:
    """The model's products are tuned, and the library has what was fastest."""
    card = FakeCard()
    card.times = lambda runs, launches: {name: SLOW - i for i, name in enumerate(runs)}
    made = TuningDevice("Test Card", "99.1", card.times)
    monkeypatch.setattr(vitc.tune, "find_device", lambda target, toolchain: made)
    how = {"batch": 2, "target": TARGET, "dtype": "float16", "image_size": 4}
    with vitc.compile(torch_model(), **how) as module:
        before = [step["config"] for step in module.manifest["steps"]]
    with vitc.compile(torch_model(), tune=True, **how) as module:
        after = [step["config"] for step in module.manifest["steps"]]
        assert "tune" in dict(module.report.stages)
        assert module(torch.zeros(2, 3, 4, 4, dtype=torch.float16)).isfinite().all()
    assert len(before) == len(after)
    assert all(a != b for a, b in zip(before, after, strict=True))
