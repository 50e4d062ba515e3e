"""`python -m vitc` from a timm name to a verified, timed library, in processes of its own."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cli")


def vitc(folder: Path, *arguments: str) -> Any:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    done = subprocess.run(
        [sys.executable, "-m", "vitc", *arguments, "--json"],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return json.loads(done.stdout)


def test_compile_verify_inspect_bench(folder: Path) -> None:
    made = vitc(folder, "compile", "test_vit", "--redraw", "-b", "2", "--dump", "dump")
    library = folder / "test_vit.so"
    assert Path(made["path"]) == library
    assert library.stat().st_size == made["bytes"]
    assert set(made["stages"]) >= {"import", "passes", "select", "plan", "render", "build"}
    assert list((folder / "dump").glob("*.vit"))

    checked = vitc(folder, "verify", library.name, "--seed", "3")
    assert checked["passed"]
    assert checked["batches"] == [1, 2]
    assert checked["graph_hash"] == made["graph_hash"]

    seen = vitc(folder, "inspect", library.name, "--profile")
    assert len(seen["profile"]) == len(seen["manifest"]["steps"])
    assert all(entry["microseconds"] > 0 for entry in seen["profile"])

    quick = ("--peers", "eager", "--seconds", "0.1", "--threads", "1")
    timed = vitc(folder, "bench", library.name, "-b", "1,2", *quick)
    assert {(t["contender"], t["batch"]) for t in timed["timings"]} == {
        ("vitc", 1),
        ("eager", 1),
        ("vitc", 2),
        ("eager", 2),
    }
