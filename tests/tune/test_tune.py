"""The tuner on the emulated GPU, with a clock that says what it is told."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Mapping
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tune.support import (
    ATTENTION,
    GRAPH,
    HEADS,
    PATCHES,
    QKV,
    SLOW,
    TARGET,
    FakeCard,
    configurations,
    tune,
)
from verify.fakes import torch_model

import vitc
import vitc.tune
from vitc.codegen import records
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.compiler import toolchain_of
from vitc.errors import DeviceError, InputError, LoadError
from vitc.ir.graph import Graph
from vitc.ir.text import parse_graph
from vitc.options import CompileOptions, checked_options
from vitc.tune import TuningDevice, device, find_device, run
from vitc.tune.run import choices

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")

REGENERATE = (
    "benchmarks/gemm_sm90.py (render, run, records), then vitc tune vit_base_patch16_224 "
    "vit_large_patch16_384 --only gather --batch 1,8,32,256 --target cuda:sm_90a --records "
    "vitc/codegen/targets/gpu/records/h100.json"
)


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


def test_heads_that_lie_otherwise_are_another_problem(options: CompileOptions) -> None:
    """What was recorded of dense heads says nothing of those in the rows of a product."""
    heads, qkv = parse_graph(HEADS), parse_graph(QKV)
    (dense,), (rows,) = choices(heads, options), choices(qkv, options)
    assert dense.choice.problem == "f16 20x20 16,16 []"
    for index in range(3):
        columns = f"map=map([B, 20, 96], slice(2, {32 * index}, {32 * index + 32}, 1), "
        assert f" ${index} {{{columns}" in rows.choice.problem
    before = configurations(heads, options), configurations(qkv, options)
    tune(heads, options, FakeCard(fast=dense.choice.names[2]))
    assert configurations(heads, options) != before[0]
    assert configurations(qkv, options) == before[1]
    tune(qkv, options, FakeCard(fast=rows.choice.names[2]))
    assert configurations(qkv, options) != before[1]


def test_the_users_records_come_before_those_shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    shipped_problems = records.read(records.SHIPPED / "h100.json")["problems"]
    entry = next(entry for entry in shipped_problems if entry["kernel"] == "sm90_gemm")
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


def test_nothing_is_built_while_kernels_are_timed(
    graph: Graph, options: CompileOptions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else times of 8 us were recorded as 157 (benchmarks/h100/log.md)."""
    building: list[str] = []
    real = run.build_trial

    def build(*arguments: Any) -> None:
        building.append("a trial")
        time.sleep(0.2)
        real(*arguments)
        building.pop()

    class Watching(FakeCard):
        def times(self, runs: Mapping[str, object], launches: int) -> dict[str, float]:
            time.sleep(0.4)  # of a build that began meanwhile something would be seen
            assert not building
            return super().times(runs, launches)

    monkeypatch.setattr(run, "build_trial", build)
    assert len(tune(graph, options, Watching()).tuned) == 2


def test_only_some_choices(graph: Graph, options: CompileOptions) -> None:
    first, second = (work.choice for work in choices(graph, options))
    name = f"{second.kernel} {second.problem}"
    assert name not in first.key
    card = FakeCard()
    report = tune(graph, options, card, only=name)
    assert [item.work.choice.key for item in report.tuned] == [second.key]
    assert card.asked == [set(second.names)]
    with pytest.raises(InputError, match="no choice of this model is named like 'nonsense'"):
        tune(graph, options, card, only="nonsense")


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
