"""benchmarks/in_model.py: what is kept and recorded, and the configurations that are compiled."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from verify.fakes import torch_model

from vitc.codegen import records
from vitc.codegen.kernel import KernelCall, Rendered
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.compiler import optimised_graph
from vitc.errors import VitcError
from vitc.options import checked_options

ROOT = Path(__file__).parents[2]
TARGET = "cuda:sm_80:emulated"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    import in_model

    return in_model


def test_noise_is_what_two_copies_differ_by(script: Any) -> None:
    """Rounds in which all slow down alike say nothing."""
    rounds = {"a": [10.0, 20.0, 30.0], "a again": [10.4, 20.4, 30.4], "b": [9.2, 19.2, 35.0]}
    standing = script.Standing.of(rounds, "a", "a again")
    assert standing.noise == pytest.approx(0.4)
    assert standing.slower["b"] == pytest.approx(-1.0)
    assert list(standing.us().items()) == [("b", 19.2), ("a", 20.0), ("a again", 20.4)]
    with pytest.raises(VitcError, match="'a again' must run"):
        script.Standing.of({"a": [1.0]}, "a", "a again")


def test_runs_take_turns(script: Any) -> None:
    """Each has a call that is not timed, then two at least."""
    order: list[str] = []

    def runner(name: str) -> Callable[[], None]:
        return lambda: order.append(name)

    def clock(run: Callable[[], object]) -> float:
        run()
        return 1e-6 * len(order)

    found = script.race({"a": runner("a"), "b": runner("b")}, clock, 0.0)
    assert order[:4] == ["a", "a", "b", "b"]
    assert order.count("a") == order.count("b") == 2 + 3 * script.ROUNDS
    assert found.keys() == {"a", "b"}
    assert all(len(times) == script.ROUNDS for times in found.values())
    assert found[order[4]][0] == pytest.approx(6.5)  # the sixth and seventh call


def test_flags_stand_behind_those_of_the_target(script: Any) -> None:
    from variants import Told

    target = find_target("cuda:sm_90a", (1,))
    plain = target.source("k", "sm_90a", "text")
    told = Told(target, 1, {}, ("-DVITC_OVERLAP=0",)).source("k", "sm_90a", "text")
    assert told == replace(plain, flags=(*plain.flags, "-DVITC_OVERLAP=0"))


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
def test_the_fastest_is_kept_and_recorded(
    script: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of the first product the second configuration is a little faster, the third is wrong and the
    fourth cannot be compiled; the noise hides what the second product could gain.
    """
    monkeypatch.setattr(script.timm, "create_model", lambda _: torch_model())
    whole, good = GpuGemm.choice, GpuGemm.render_choice
    offered = {"16x48": 4, "12x16": 2, "10x12": 1}

    def few(self: GpuGemm, call: KernelCall, batch: int) -> records.Choice:
        choice = whole(self, call, batch)
        return replace(choice, names=choice.names[: offered[choice.problem.split()[1]]])

    def broken(self: GpuGemm, call: KernelCall, name: str) -> Rendered:
        made, position = good(self, call, name), whole(self, call, 2).names.index(name)
        if position == 2:
            assert "(call, 2)" in made.body  # the bias
            return replace(made, body=made.body.replace("(call, 2)", "(call, 1)"))
        return replace(made, body="#error no such tile") if position == 3 else made

    noises = iter((1.0, 4.0, 0.0))
    raced: list[list[str]] = []

    def race(runs: Any, _clock: object, _seconds: float) -> dict[str, list[float]]:
        names = list(runs)
        raced.append(names)
        times = {name: [100.0] for name in names}
        times[names[1]] = [98.0]
        times[f"{names[0]} again"] = [100.0 + next(noises)]
        return times

    monkeypatch.setattr(GpuGemm, "choice", few)
    monkeypatch.setattr(GpuGemm, "render_choice", broken)
    monkeypatch.setattr(script, "race", race)
    output = tmp_path / "new" / "found.json"
    given = ["in_model.py", "x", "--batch", "2", "--target", TARGET, "--image-size", "4"]
    monkeypatch.setattr(sys, "argv", [*given, "--limit", "1e9", "--output", str(output)])
    assert script.main() == 0

    report = json.loads(output.read_text())
    first, second = report["choices"]
    assert report["left_out"] == []
    options = checked_options(2, TARGET, "float16", None, None, "embedded", (), None, None)
    _, graph = optimised_graph(torch_model(), options, image_size=4)
    call = select(graph, find_target(TARGET, (2,))).calls[0]
    names = whole(call.kernel, call, 2).names  # type: ignore[arg-type]
    assert (first["default"], first["before"], first["chosen"]) == (names[0], names[0], names[1])
    assert first["failed"].keys() == set(names[2:4])
    assert "differs from the default" in first["failed"][names[2]]
    assert "CompileError" in first["failed"][names[3]]
    assert (second["chosen"], second["noise"]) == (second["default"], 4.0)
    assert list(report["final"]["kept"].values()) == [names[1]]
    assert set(raced[-1]) == {
        "default", "default again", "kept", "kept again", "default without graph"
    }  # fmt: skip

    record = output.with_name("found-record.json")
    (entry,) = records.read(record)["problems"]
    assert (entry["problem"], list(entry["us"])) == (first["problem"], [names[1], names[0]])
    assert records.read(record)["times"] == "of whole models"
    again = tmp_path / "again.json"
    monkeypatch.setattr(sys, "argv", ["in_model.py", str(output), "--record", str(again)])
    assert script.main() == 0
    assert again.read_text() == record.read_text()
    again.unlink()
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--calls", str(first["calls"] + 1)])
    assert script.main() == 0
    assert not again.exists()
    monkeypatch.setattr(records, "user_files", lambda _: [record])
    assert script.sites([call], 2)[0].default == names[1]
