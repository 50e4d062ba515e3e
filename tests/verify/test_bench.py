"""bench: times only what verified, all contenders alike, and keeps its figures honest."""

from __future__ import annotations

import dataclasses
import json
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor
from verify.fakes import FakeModule, torch_model

from vitc.bench import OURS, BenchmarkRefused, Timing, bench, contenders
from vitc.bench import run as running
from vitc.bench.ceilings import Ceilings, measure_ceilings
from vitc.bench.clock import clock_for, cpu_clock
from vitc.errors import DeviceError, InputError
from vitc.verify import verify

QUICK = {"seconds": 0.02, "rounds": 2, "peers": ("eager",), "threads": 1}


def test_a_verified_library_is_timed_beside_eager() -> None:
    module = FakeModule(torch_model())
    report = bench(module, module.model, batches=[1, 3], **QUICK)
    assert report.batches == (1, 3)
    assert report.contenders == (OURS, "eager")
    assert report.threads == 1
    assert report.graph_hash == "feed"
    assert 0 < report.error < report.bound
    for timing in report.timings:
        assert timing.samples >= 2
        assert 0 < timing.low <= timing.milliseconds <= timing.high
    plain = report.to_json()
    assert json.loads(json.dumps(plain))["speedups"]["eager"].keys() == {"1", "3"}
    ratio = report.timing("eager", 3).milliseconds / report.timing(OURS, 3).milliseconds
    assert report.speedup("eager", 3) == ratio


def test_what_does_not_verify_is_never_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(running, "_race", lambda *_: pytest.fail("timed"))
    module = FakeModule(torch_model(), whole=lambda y: y * 1.001)
    with pytest.raises(BenchmarkRefused, match="does not verify"):
        bench(module, module.model, **QUICK)


def test_a_mistake_at_a_timed_batch_alone_is_enough() -> None:
    module = FakeModule(torch_model(), whole=lambda y: y * (1.001 if len(y) == 3 else 1.0))
    with pytest.raises(BenchmarkRefused, match="batch 3: error"):
        bench(module, module.model, batches=[3], **QUICK)


def test_a_report_of_another_library_or_batch_is_refused() -> None:
    module = FakeModule(torch_model())
    report = verify(module, module.model)
    assert bench(module, module.model, batches=[1], verified=report, **QUICK).timings
    with pytest.raises(BenchmarkRefused, match="not \\[3\\]"):
        bench(module, module.model, batches=[3], verified=report, **QUICK)
    other = dataclasses.replace(report, graph_hash="beef")
    with pytest.raises(BenchmarkRefused, match="another library"):
        bench(module, module.model, batches=[1], verified=other, **QUICK)


def test_batches_that_the_library_cannot_run_are_refused() -> None:
    module = FakeModule(torch_model())
    with pytest.raises(BenchmarkRefused, match="batch 5"):
        bench(module, module.model, batches=[5], **QUICK)


def test_a_peer_that_computes_something_else_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    wrong = ("wrong", lambda model: lambda x: 2 * model(x))
    monkeypatch.setattr(contenders, "PEERS", {"eager": wrong})
    module = FakeModule(torch_model())
    with pytest.raises(BenchmarkRefused, match="another model"):
        bench(module, module.model, **QUICK)


def test_unknown_peers_and_devices_are_named() -> None:
    module = FakeModule(torch_model())
    with pytest.raises(InputError, match="'turbo'"):
        bench(module, module.model, **{**QUICK, "peers": ("turbo",)})
    with pytest.raises(DeviceError, match="meta"):
        clock_for(torch.device("meta"))


def test_threads_are_the_same_for_all_and_restored(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []

    def eager(model: torch.nn.Module) -> object:
        def call(x: Tensor) -> Tensor:
            seen.append(torch.get_num_threads())
            return model(x)

        return call

    class Watching(FakeModule):
        def new_context(self, threads: int | None = None) -> object:
            if threads is not None:
                seen.append(threads)
            return super().new_context(threads)

    monkeypatch.setattr(contenders, "PEERS", {"eager": ("eager", eager)})
    before = torch.get_num_threads()
    module = Watching(torch_model())
    bench(module, module.model, **{**QUICK, "threads": 2})
    assert set(seen) == {2}
    assert torch.get_num_threads() == before


def test_a_graph_is_warmed_up_behind_the_current_stream(monkeypatch: pytest.MonkeyPatch) -> None:
    """The peer's weights are written on the current stream, and another one waits for nobody."""
    order: list[str] = []

    class Model:
        def parameters(self) -> Any:
            return iter([SimpleNamespace(device=torch.device("cuda"))])

        def __call__(self, x: Tensor) -> None:
            order.append("run")
            if len(x) > 1:
                raise RuntimeError("out of memory")

    side = SimpleNamespace(
        wait_stream=lambda other: order.append(f"wait for {other}"),
        synchronize=lambda: order.append("synchronize"),
    )
    graph = SimpleNamespace(replay=lambda: order.append("replay"))
    monkeypatch.setattr(torch.cuda, "Stream", lambda: side)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: "current")
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda _: nullcontext())
    make: Any = contenders.PEERS["graph"][1]
    run, x = make(Model()), torch.zeros(1)
    run(x)
    run(x)
    warmed = ["wait for current", "run", "run", "run", "synchronize"]
    assert order == [*warmed, "run", "replay", "replay"]
    order.clear()
    with pytest.raises(RuntimeError, match="out of memory"):
        run(torch.zeros(2))
    assert order == ["wait for current", "run", "synchronize"]


def test_inputs_take_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: set[float] = set()

    def eager(model: torch.nn.Module) -> object:
        def call(x: Tensor) -> Tensor:
            seen.add(float(x.sum()))
            return model(x)

        return call

    monkeypatch.setattr(contenders, "PEERS", {"eager": ("eager", eager)})
    module = FakeModule(torch_model())
    bench(module, module.model, batches=[2], **QUICK)
    assert len(seen) == running.ROTATION


def test_contenders_take_turns_and_the_order_rotates() -> None:
    order: list[str] = []
    racers = [
        running._Racer(name, lambda x, name=name: (order.append(name), x)[1], [torch.zeros(1)])
        for name in ("a", "b")
    ]
    running._race(racers, lambda run: (run(), 1.0)[1], 4.0, 4, None, "")
    assert all(len(racer.samples) == 4 for racer in racers)
    turns = "".join(order)[6:]  # after three runs each that measure how long a slice is
    assert turns == "aabb" + "bbaa" + "aabb" + "bbaa"


def test_the_median_and_percentiles() -> None:
    timing = Timing.of("x", 8, [n * 1e-3 for n in (1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 100)], 0.5)
    assert timing.milliseconds == 6
    assert (timing.low, timing.high) == (2, 10)
    assert timing.images_per_second == pytest.approx(8 / 6e-3)
    assert timing.spread == 5


def test_the_clock_measures_the_call() -> None:
    import time

    assert 0.01 < cpu_clock(lambda: time.sleep(0.011)) < 1.0


def test_the_machine_is_named(tmp_path: Path) -> None:
    from vitc.bench.machine import describe_machine

    info = tmp_path / "cpuinfo"
    info.write_text("processor\t: 0\nmodel name\t: Test 9000\nflags\t\t: fpu avx2 fma\n\nx: y\n")
    machine = describe_machine(
        {"target": "cpu", "toolchain": {"c++": "gcc 99", "cuda": "nvcc 9"}}, info
    )
    assert machine.device == "Test 9000"
    assert machine.features == ("avx2", "fma")
    assert machine.versions["compiler"] == "gcc 99, nvcc 9"
    assert machine.versions["torch"]
    assert describe_machine({"target": "cpu"}, tmp_path / "none").features == ()


def test_features_are_compared_with_features() -> None:
    class Two(torch.nn.Module):
        def __init__(self, inner: torch.nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, x: Tensor) -> Tensor:
            return 2 * self.inner(x)

        def forward_features(self, x: Tensor) -> Tensor:
            return self.inner(x)

    model = torch_model()
    module = FakeModule(model)
    assert bench(module, Two(model), batches=[1], features=True, **QUICK).timings
    module.manifest["features"] = True
    assert bench(module, Two(model), batches=[1], **QUICK).timings
    with pytest.raises(BenchmarkRefused):
        bench(module, Two(model), batches=[1], features=False, **QUICK)


def test_ceilings_and_the_roof_under_them() -> None:
    found = measure_ceilings(torch.device("cpu"), "float32", threads=1, seconds=0.01)
    assert found.dtype == "float32"
    assert found.flops > found.bytes / 8 > 0  # a product computes more than it moves
    with pytest.raises(DeviceError):
        measure_ceilings(torch.device("meta"), "float32", threads=1)
    ceilings = Ceilings("float32", flops=100.0, bytes=10.0)
    assert ceilings.floor(200.0, 10.0) == 2.0
    assert ceilings.floor(100.0, 50.0) == 5.0
    steps = [
        {"flops": 100, "bytes": 10, "constant_bytes": 8},  # arithmetic: 4 s at batch 4
        {"flops": 10, "bytes": 60, "constant_bytes": 40},  # bytes: (20 * 4 + 40) / 10 = 12 s
    ]
    assert ceilings.roof({"steps": steps}, 4) == 4 / 16
