"""The vitc command on a fake library: output, JSON, exit codes."""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import constants
from typer.testing import CliRunner, Result
from verify.fakes import TEXT, FakeModule, torch_model

import vitc
from vitc import errors, hub, tune
from vitc.bench import BenchmarkRefused
from vitc.cli import app, codes
from vitc.codegen.records import Choice
from vitc.tune import Tuned, TuneReport
from vitc.verify import VerificationError

runner = CliRunner()


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeModule:
    """What `vitc ... fake.so` loads; its model is known."""
    module = FakeModule(torch_model())
    monkeypatch.setattr(vitc, "load", lambda path, threads=None: module)
    for command in ("verify", "bench"):
        target = f"vitc.cli.{command}.model_of_library"
        monkeypatch.setattr(target, lambda *_, **__: module.model)
    return module


@pytest.fixture
def empty_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def call(*arguments: str, **options: Any) -> Result:
    return runner.invoke(app, list(arguments), **options)


@pytest.mark.parametrize("arguments", [("--help",), ("opt", "--list"), ("nothing",)])
def test_python_runs_the_package_as_the_command(
    empty_folder: Path, arguments: tuple[str, ...]
) -> None:
    """The same text, and the same exit code, under the command's own name."""
    entered = "import sys; from vitc.cli import app; sys.argv[0] = 'vitc'; app()"
    ways = (("-m", "vitc"), ("-c", entered))
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    first, second = (
        subprocess.run(
            [sys.executable, *way, *arguments],
            cwd=empty_folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
        )
        for way in ways
    )
    assert (first.returncode, first.stdout, first.stderr) == (
        second.returncode, second.stdout, second.stderr
    )  # fmt: skip
    assert (first.returncode == 0) is (arguments != ("nothing",))


def test_verify_exits_0_or_1(fake: FakeModule) -> None:
    good = call("verify", "fake.so")
    assert good.exit_code == 0, good.output
    assert "verified" in good.stdout
    fake.bugs = {"b": lambda v: v * 1.5}
    bad = call("verify", "fake.so")
    assert bad.exit_code == 1
    assert "FAILED" in bad.stdout
    assert "step that differs: 1 'linear_b'" in bad.stdout


def test_verify_as_json(fake: FakeModule) -> None:
    fake.bugs = {"b": lambda v: v * 1.5}
    result = call("verify", "fake.so", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == 1
    assert found["passed"] is False
    assert found["finding"]["stage"] == "kernel"
    assert found["finding"]["step"]["index"] == 1


def test_verify_each_weight(fake: FakeModule, monkeypatch: pytest.MonkeyPatch) -> None:
    result = call("verify", "fake.so", "--each-weight", "--json")
    assert result.exit_code == 0
    rows = json.loads(result.stdout)["weights"]
    assert {row["name"] for row in rows} == set(fake.weights)
    monkeypatch.setattr(fake, "load_weights", lambda _: None)  # deaf: no weight changes anything
    assert call("verify", "fake.so", "--each-weight").exit_code == 1


def test_bench_writes_table_json_and_chart(fake: FakeModule, tmp_path: Path) -> None:
    chart, out = tmp_path / "c.png", tmp_path / "b.json"
    quick = ("--peers", "eager", "--seconds", "0.02", "--threads", "1")
    result = call("bench", "fake.so", "-b", "1,2", *quick, "--chart", str(chart), "-o", str(out))
    assert result.exit_code == 0, result.output
    assert "images/s" in result.stdout
    assert [t["batch"] for t in json.loads(out.read_text())["timings"]] == [1, 1, 2, 2]
    assert chart.read_bytes().startswith(b"\x89PNG")
    clean = call("bench", "fake.so", *quick, "--json")
    assert json.loads(clean.stdout)["graph_hash"] == "feed"
    nowhere = call("bench", "fake.so", *quick, "-o", str(tmp_path / "no" / "b.json"))
    assert nowhere.exit_code == 7


def test_bench_refuses_what_does_not_verify(fake: FakeModule) -> None:
    fake.whole = lambda y: y * 1.01
    result = call("bench", "fake.so", "--json")
    assert result.exit_code == 1
    error = json.loads(result.stdout)["error"]
    assert error["kind"] == "BenchmarkRefused"
    assert "images/s" not in result.stdout
    assert "BenchmarkRefused" in result.stderr


def test_inspect(fake: FakeModule, tmp_path: Path) -> None:
    drawing, memory, trace = tmp_path / "g.dot", tmp_path / "m.png", tmp_path / "t.json"
    result = call(
        "inspect", "fake.so", "--profile", "--weights", "--graphs", "--trace", str(trace),
        "--graph", str(drawing), "--memory", str(memory),
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    for expected in (
        "not kept in a library",
        "%b = linear(%a, %3.weight, %3.bias)",
        "GFLOP/s",
        "of peak",
        "of what the ceilings allow",
        "loads operand 0 (%x) through ",
        "lower bound",
        "|",
    ):
        assert expected in result.stdout
    assert drawing.read_text().startswith("digraph")
    assert memory.exists()
    kernels = [e for e in json.loads(trace.read_text())["traceEvents"] if e["ph"] == "X"]
    assert [(e["name"], e["ts"], e["dur"]) for e in kernels] == [
        ("linear_a", 0, 10), ("linear_b", 10, 11), ("linear_y", 21, 12)
    ]  # fmt: skip
    assert kernels[0]["args"]["GFLOP/s"] == round(2 * 48 * 16 / 10e-6 / 1e9, 1)
    found = json.loads(call("inspect", "fake.so", "--json", "--profile", "-b", "3").stdout)
    assert found["batch"] == 3
    assert found["ceilings"]["flops"] > found["ceilings"]["bytes"] / 8
    assert call("inspect", "fake.so", "--trace", str(tmp_path / "no" / "t.json")).exit_code == 7
    found = json.loads(call("inspect", "fake.so", "--json").stdout)
    assert found["profile"] is None
    assert found["manifest"]["name"] == "tiny"
    assert "graph tiny" in found["graphs"]["after"]


def test_tune_shows_what_it_measured(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    site = SimpleNamespace(choice=Choice("sm_80", "gemm", (), "f16 8x8", 197, ("a", "b")), batch=1)
    tuned = Tuned(site, {"a": 4.0, "b": 2.0}, {"c": "differs from a by 1.0e+00"})  # type: ignore[arg-type]
    made = TuneReport("Test Card", "cuda:sm_80", "13.0", tmp_path / "r.json", (tuned,), 3)
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(tune, "tune", lambda _model, **how: (asked.append(how), made)[1])
    shown = call("tune", "test_vit", "test_vit2", "-b", "1,8", "--force").stdout
    for expected in ("f16 8x8", "197", "2.00x", "Test Card", "3 more", "c differs from a"):
        assert expected in shown
    assert [how["batch"] for how in asked] == [[1, 8], [1, 8]]
    assert all(how["force"] for how in asked)
    (found,) = json.loads(call("tune", "test_vit", "--json").stdout)
    assert (found["model"], found["tuned"][0]["best"], found["known"]) == ("test_vit", "b", 3)


def test_doctor_says_what_is_here() -> None:
    result = call("doctor", "--json")
    found = json.loads(result.stdout)
    assert result.exit_code == (0 if found["healthy"] else 4)
    assert {row["name"] for row in found["rows"]} >= {"python", "torch", "c++ compiler"}
    assert "c++ compiler" in call("doctor").stdout


def test_opt_runs_passes_on_text(tmp_path: Path) -> None:
    source = tmp_path / "g.vit"
    source.write_text(
        TEXT.replace("%y = linear", "%dead = move(%b) {map=map([B,12])}\n  %y = linear")
    )
    result = call("opt", str(source), "-p", "clean")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("graph tiny(")
    assert "%dead" not in result.stdout
    assert "clean" in result.stderr
    again = call("opt", "-", "-p", "clean", input=source.read_text())
    assert again.stdout == result.stdout
    out = tmp_path / "out.vit"
    assert call("opt", str(source), "-p", "clean", "-o", str(out)).stdout == ""
    assert out.read_text() == result.stdout
    found = json.loads(call("opt", str(source), "--json").stdout)
    assert found["passes"][0]["name"]
    assert found["graph"].startswith("graph tiny(")


def test_opt_lists_passes() -> None:
    listed = call("opt", "--list")
    assert listed.exit_code == 0
    assert "fuse_epilogue" in listed.stdout
    found = json.loads(call("opt", "--list", "--json").stdout)
    assert found["order"][0] == "clean"
    assert all(row["contract"] for row in found["passes"])


def test_opt_refuses_bad_graphs(tmp_path: Path) -> None:
    bad = tmp_path / "bad.vit"
    bad.write_text("graph g(%x: f32[B,4]) {\n  %y = nonsense(%x)\n  return %y\n}\n")
    result = call("opt", str(bad))
    assert result.exit_code == 8
    assert "line 2" in result.stderr
    assert call("opt", str(tmp_path / "none.vit")).exit_code == 5
    assert call("opt").exit_code == 2
    bad.write_text(TEXT)
    assert "known:" in call("opt", str(bad), "-p", "nosuch").stderr


@pytest.mark.parametrize(
    ("arguments", "code", "says"),
    [
        (("compile", "vit_tiny_patch16_225", "--redraw"), 3, "close names"),
        (("compile", "test_vit", "--redraw", "--dtype", "float9"), 2, "float9"),
        (("compile", "test_vit", "--redraw", "--batch", "many"), 2, "many"),
        (("compile", "test_vit", "--redraw", "--batch", "0"), 2, "batch"),
        (("compile", "test_vit", "--redraw", "--image-size", "wide"), 2, "wide"),
        (("compile", "test_vit", "--checkpoint", "/no/such.pth"), 5, "/no/such.pth"),
        (("compile", "test_vit", "--redraw", "--disable", "nosuch"), 2, "nosuch"),
        (("compile", "test_vit", "--redraw", "--tune", "--target", "cpu"), 2, "nothing to tune"),
        (("tune", "test_vit", "--target", "cpu"), 2, "nothing to tune"),
        (("tune", "test_vit", "--target", "cuda:sm_80:emulated"), 2, "cuda:sm_80, on that card"),
        (("verify", "/no/such.so"), 5, "/no/such.so"),
        (("inspect", "/no/such.so"), 5, "/no/such.so"),
        (("nosuch",), 2, "nosuch"),
        (("compile",), 2, "MODEL"),
    ],
)
def test_mistakes_have_codes_and_are_named(
    arguments: tuple[str, ...], code: int, says: str, empty_folder: Path
) -> None:
    result = call(*arguments)
    assert result.exit_code == code, result.output
    assert says in result.stderr
    assert "Traceback" not in result.output
    assert not list(empty_folder.iterdir())


def test_errors_are_json_when_asked_and_traced_with_debug() -> None:
    result = call("inspect", "/no/such.so", "--json")
    error = json.loads(result.stdout)["error"]
    assert (error["kind"], error["exit_code"]) == ("LoadError", 5)
    assert "Traceback" in call("inspect", "/no/such.so", "--debug").stderr


def test_every_error_has_its_code() -> None:
    made: dict[type[errors.VitcError], int] = {
        VerificationError: 1,
        BenchmarkRefused: 1,
        errors.InputError: 2,
        errors.UnsupportedModelError: 3,
        errors.CompileError: 4,
        errors.LoadError: 5,
        errors.WeightsError: 5,
        errors.DeviceError: 6,
        errors.StorageError: 7,
        errors.GraphError: 8,
        errors.VitcError: 9,
    }
    for kind, code in made.items():
        assert codes.exit_code(kind.__new__(kind)) == code
    named = {name for _, names, _ in codes.CODES for name in names}
    known = {k.__name__ for k in vars(errors).values() if isinstance(k, type)}
    known -= {"UnsupportedOp", "Path"}
    assert known <= named, "an error class without an exit code of its own"


def test_help_lists_commands_and_codes() -> None:
    shown = call("--help").stdout
    for name in ("compile", "verify", "bench", "tune", "inspect", "doctor", "opt"):
        assert name in shown
        assert call(name, "--help").exit_code == 0
    assert "Exit codes" in shown
    assert call("--version").stdout.strip() == f"vitc {vitc.__version__}"


def test_without_a_hub_weights_fail_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # the discard port: nobody listens
    for name in ("HTTPS_PROXY", "https_proxy", "HF_HUB_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(os, "environ", dict(os.environ))
    assert hub.hub_answers(1.0) is False
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert constants.HF_HUB_OFFLINE is True
    monkeypatch.setattr(hub, "_connects", lambda _: pytest.fail("asked again"))
    assert hub.hub_answers() is False


def test_progress_stays_off_pipes(fake: FakeModule) -> None:
    result = call("verify", "fake.so", "--json")
    assert result.stderr == ""
    assert isinstance(json.load(io.StringIO(result.stdout)), dict)
