"""benchmarks/models.py: a small plan from end to end, and results that are merged by key."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]


@pytest.fixture
def scripts(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType, ModuleType]:
    """models, plans and results, as they import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    # Processes that are spawned import them too.
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'benchmarks'}")
    # Beside tests/models, which whoever ran before may have imported under this name.
    monkeypatch.delitem(sys.modules, "models", raising=False)
    import models
    import plans
    import results

    return models, plans, results


def row(library: str, batch: int, contender: str, ms: float, **more: Any) -> dict[str, Any]:
    about = {"device": "Card", "driver": "1", "compiler": "nvcc 1", "torch": "2", "timm": "1"}
    key = {"library": library, "batch": batch, "contender": contender}
    rate = {"ms": ms, "vitc_ms": 2.0, "images_per_second": 1e3 * batch / ms}
    return {**key, **rate, **about, "date": "2026-01-02T03", **more}


def test_rows_are_merged_and_shown(scripts: Any, tmp_path: Path) -> None:
    _, _, results = scripts
    path = tmp_path / "new" / "models.json"
    first = results.Results(path)
    first.add_rows([row("vit_x cpu", b, "vitc", 2.0, roof=1000.0 * b) for b in (1, 8, 32)])
    first.add_rows([row("vit_x cpu", 8, "graph", 9.0), row("vit_x cpu", 8, "eager", 6.0)])
    first.add_rows([row("vit_x cpu", 8, "graph", 3.0)])
    first.add_profile({"library": "vit_x cpu", "batch": 8, "us": 1})
    first.save(path)
    again = results.Results(path)
    assert len(again.rows) == 5
    assert again.row("vit_x cpu", 8, "graph")["ms"] == 3.0
    assert again.row("vit_x cpu", 1, "graph") is None
    text = results.markdown(again)
    assert "| vit_x cpu | 8 | 2.000 | 4000 | 50 % | 6.000 (3.00x) | 3.000 (1.50x) |" in text
    assert "* Card, driver 1, nvcc 1, torch 2, timm 1; 2026-01-02" in text
    pytest.importorskip("matplotlib", reason="charts need matplotlib")
    (chart,) = results.charts(again, tmp_path)
    assert chart.name == "vit.png"
    assert chart.read_bytes().startswith(b"\x89PNG")


@pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")
def test_a_plan_from_end_to_end(
    scripts: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    models, plans, _ = scripts
    libraries = (
        plans.Library("test_vit", "float32", "cpu", (1, 2), profiled=(2,)),
        plans.Library("test_vit2", "float9", "cpu", (1,)),
    )
    small = {"cpu": (libraries, ("eager",), "cpu")}
    monkeypatch.setattr(models, "PLANS", small)

    def run(*arguments: str) -> int:
        given = ["models.py", "cpu", "--seconds", "0.05", "--output", str(tmp_path), *arguments]
        monkeypatch.setattr(sys, "argv", given)
        return models.main()

    monkeypatch.setattr(models, "HERE", tmp_path / "no-results-yet")
    assert run() == 1  # the second library is refused, the first is measured all the same
    data = json.loads((tmp_path / "models.json").read_text())
    assert [(r["batch"], r["contender"]) for r in data["rows"]] == [
        (1, "vitc"), (1, "eager"), (2, "vitc"), (2, "eager")
    ]  # fmt: skip
    for measured in data["rows"]:
        assert measured["torch"] == torch.__version__.split("+")[0]
        assert measured["device"]
        assert measured["error"] < measured["bound"]
    (profile,) = data["profiles"]
    kernels = sum(entry["calls"] for entry in profile["kernels"])
    assert profile["batch"] == 2
    assert kernels > 10 > len({entry["config"] for entry in profile["kernels"]})
    assert "test_vit float32 cpu | 2" in (tmp_path / "models.md").read_text()

    monkeypatch.setattr(models, "build_all", lambda libraries, _folder: libraries and 1 / 0)
    assert run("--missing", "--only", "test_vit float32") == 0  # nothing is: nothing is built
    with pytest.raises(ZeroDivisionError):
        run("--missing", "--only", "test_vit float32", "--peers", "compile")
