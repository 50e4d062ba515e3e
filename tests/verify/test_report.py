"""Tables and charts show the figures that the data holds."""

from __future__ import annotations

from pathlib import Path

import pytest
from rich.console import Console
from verify.fakes import FakeModule, torch_model

from vitc import report
from vitc.bench import BenchReport, Machine, Timing
from vitc.bench.ceilings import Ceilings
from vitc.errors import InputError
from vitc.report.memory import peak_step
from vitc.report.units import show_bytes, show_flops, show_seconds, show_share
from vitc.verify import verify


def text(*renderables: object) -> str:
    console = Console(width=200, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(*renderables)
    return console.export_text()


def figures() -> BenchReport:
    machine = Machine(
        "CPU X", ("avx2",), 2, "", 0.5, "Linux", {"torch": "2"}, "2026-01-02T03:04:05"
    )
    timings = (
        Timing("vitc", 1, 10.0, 9.5, 11.0, 50),
        Timing("eager", 1, 15.0, 14.0, 16.0, 50),
        Timing("vitc", 8, 80.0, 79.0, 81.0, 9),
        Timing("eager", 8, 60.0, 59.0, 61.0, 9),
    )
    ceilings = Ceilings("float32", flops=2e9, bytes=1e9)
    roofs = {1: 125.0, 8: 400.0}
    return BenchReport(
        "m", "cpu", "float32", 2, "feed", 4e-7, 1e-5, machine, timings, ceilings, roofs
    )


def test_units() -> None:
    assert [show_bytes(n) for n in (340, 1536, 346.2 * 2**20, 3 * 2**30)] == [
        "340 B",
        "1.5 KiB",
        "346.2 MiB",
        "3.00 GiB",
    ]
    assert [show_flops(n) for n in (12, 2100, 35.1e9, 2e13)] == [
        "12 FLOP",
        "2.1 kFLOP",
        "35.1 GFLOP",
        "20.00 TFLOP",
    ]
    assert [show_seconds(s) for s in (0.0008, 0.34, 12.44)] == ["0.8 ms", "340 ms", "12.4 s"]
    assert show_share(1, 8) == "12.5 %"
    assert show_share(0, 0) == "-"


def test_the_bench_table_has_rates_and_ratios() -> None:
    shown = text(report.bench_table(figures()))
    rows = [line.split() for line in shown.splitlines() if "x" in line and "10.00" in line]
    assert [cell for cell in rows[0] if cell != "│"] == [
        "1", "10.00", "100.0", "15.00", "66.7", "1.50x", "125.0", "80.0", "%",
    ]  # fmt: skip
    assert "0.75x" in shown
    assert "disturbed" not in shown
    assert "CPU X" in shown


def test_noise_is_pointed_out() -> None:
    calm = figures()
    noisy = Timing("eager", 1, 15.0, 14.0, 40.0, 50)
    shown = text(
        report.bench_table(BenchReport(**{**vars(calm), "timings": (*calm.timings, noisy)}))
    )
    assert "disturbed" in shown
    assert "14.0 to 40.0 ms" in shown


def test_kernels_with_their_share() -> None:
    module = FakeModule(torch_model())
    shown = text(report.kernel_table(module.manifest))
    total = 2 * (48 * 16 + 16 * 12 + 12 * 10)
    assert f"{100 * 2 * 48 * 16 / total:.1f} %" in shown
    profiled = text(report.kernel_table(module.manifest, module.profile(None)))
    assert "GFLOP/s" in profiled
    assert "0.033 ms in kernels" in profiled
    assert "of peak" not in profiled
    shares = text(report.kernel_table(module.manifest, module.profile(None), figures().ceilings))
    # The first kernel takes 10 us for 2 * 48 * 16 operations and 1000 bytes.
    assert f"{100 * 2 * 48 * 16 / 10e-6 / 2e9:.1f} %" in shares
    assert f"{100 * 1000 / 10e-6 / 1e9:.1f} %" in shares
    assert f"{100 * 3e-6 / 33e-6:.1f} % of what the ceilings allow" in shares


def test_the_verification_table_marks_failures_and_kernels() -> None:
    module = FakeModule(torch_model(), bugs={"b": lambda v: v * 1.5})
    shown = text(*report.verify_tables(verify(module, module.model)))
    assert "FAILED" in shown
    assert "linear_b" in shown
    assert "5.0e-01" in shown


def test_the_memory_plan() -> None:
    manifest = FakeModule(torch_model()).manifest
    shown = text(report.memory_table(manifest))
    assert "4096" in shown
    assert "50.0 % of it" in shown
    assert peak_step(manifest) == (1, 256 + 192)
    chart = report.lifetimes(manifest, width=3, height=2).splitlines()
    # Rows from the top: the upper half holds b at steps 1 and 2, the lower a at steps 0 and 1.
    assert chart[0].endswith("|.bb|")
    assert chart[1].endswith("|aa.|")


def test_charts_are_written(tmp_path: Path) -> None:
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    for path in (
        report.bench_chart(figures(), tmp_path / "new" / "bench.png"),
        report.memory_chart(FakeModule(torch_model()).manifest, tmp_path / "memory.png"),
        report.rates_chart({"m": {"vitc": {1: 5.0, 8: 9.0}, "roof": {1: 9.0}}}, tmp_path / "r.png"),
    ):
        assert path.read_bytes().startswith(b"\x89PNG")


def test_graphs_as_dot(tmp_path: Path) -> None:
    module = FakeModule(torch_model())
    assert module.graph is not None
    drawn = report.write_graph(module.graph, tmp_path / "g.dot").read_text()
    assert '"x" -> "flat"' in drawn
    assert '"y" -> "return"' in drawn
    assert "1.weight" not in drawn
    with pytest.raises(InputError, match=r"\.dot or \.svg"):
        report.write_graph(module.graph, tmp_path / "g.pdf")


def test_the_summary() -> None:
    shown = text(report.summary_table(FakeModule(torch_model()).manifest))
    assert "x float32[B, 3, 4, 4]" in shown
    assert "2.00 times the lower bound" in shown
