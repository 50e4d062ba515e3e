"""Gathered rows on Hopper: which configuration is taken, and that those of Hopper's own are right."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from graphs import assign, errors

from vitc.codegen import records
from vitc.codegen.kernel import KernelCall, Rendered
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.codegen.targets.gpu.gemm import GpuGemm
from vitc.codegen.targets.gpu.sm90_gather import Sm90GatherGemm, cost
from vitc.codegen.targets.gpu.sm90_tiles import TILES, LargeTile, Problem
from vitc.ir.types import DType

# Patches behind the places of tokens, statistics, and a product that normalises by them.
PATCHES = """
graph patches(%x: f32[B,{c},{h},{w}]) {{
  weight %w: f32[{n},{k}]
  weight %table: f32[1,{rows},{n}]
  weight %v: f32[32,{n}]
  %m = move(%x) {{map=map([B,{c},{h},{w}], slice(2,0,{used},1), slice(3,0,{across},1), reshape([B,{c},{y},{p},{xs},{p}]), permute([0,2,4,1,3,5]), reshape([B,{yx},{k}]), pad(1,{tokens},0))}}
  %y, %s = linear(%m, %w, %table) {{steps=[add($2)], stats=32}}
  %z = linear(%y, %v, %s) {{steps=[row_rstd($2, {n}.0, 1e-6)]}}
  return %z
}}"""


def patches(n: int, c: int, p: int, size: tuple[int, int], tokens: int) -> str:
    y, xs = size[0] // p, size[1] // p
    return PATCHES.format(
        n=n, c=c, h=size[0], w=size[1], k=c * p * p, y=y, xs=xs, p=p, yx=y * xs,
        rows=y * xs + tokens, tokens=tokens,
        used=y * p, across=xs * p,
    )  # fmt: skip


VIT = patches(96, 3, 16, (48, 80), 1)


def first_call(text: str, batches: tuple[int, ...], dtype: DType = DType.FLOAT16) -> KernelCall:
    call, *_ = select(assign(text, dtype), find_target("cuda:sm_90a", batches)).calls
    return call


@pytest.fixture(autouse=True)
def no_records(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("VITC_CACHE", str(tmp_path))


def choice_at(call: KernelCall, batch: int) -> records.Choice:
    choice = call.kernel.choice(call, batch)
    assert choice is not None
    return choice


def portable_form(call: KernelCall) -> KernelCall:
    """The call as one of the portable kernel."""
    assert isinstance(call.kernel, Sm90GatherGemm)
    return replace(call, kernel=GpuGemm(call.kernel.tuning, call.kernel.stats_width))


def render(call: KernelCall) -> Rendered:
    return call.kernel.render(call)


def record(call: KernelCall, batch: int, name: str) -> None:
    """Makes `name` the fastest for a batch."""
    choice = choice_at(call, batch)
    assert name in choice.names
    about = {"device": "Test Card", "arch": "sm_90a", "toolkit": "99.1", "date": ""}
    measured = records.Measured(choice.kernel, choice.problem, choice.size, {name: 1.0})
    digest = records.kernel_digest(choice.headers)
    path = records.user_file("Test Card", "sm_90a", "99.1")
    records.store(path, about, {choice.kernel: digest}, [measured])


def test_hoppers_tiles_come_first() -> None:
    call = first_call(VIT, (1, 64))
    assert all("GatherTile" in part for part in render(call).config.split("; "))
    portable, names = choice_at(portable_form(call), 64).names, choice_at(call, 64).names
    assert names[-len(portable) :] == portable
    assert len(names) > len(portable)


def test_rows_gathered_otherwise_are_another_problem() -> None:
    """The same rows and columns of the product, out of images of another form."""
    wide, tall = (first_call(patches(96, 3, 16, size, 1), (64,)) for size in ((48, 80), (80, 48)))
    for calls in ((wide, tall), (portable_form(wide), portable_form(tall))):
        first, second = (choice_at(call, 64) for call in calls)
        assert first.size == second.size
        assert first.problem != second.problem


def test_a_record_chooses_a_portable_tile_at_its_batch(golden: Any) -> None:
    call = first_call(VIT, (1, 64))
    record(call, 64, choice_at(portable_form(call), 64).names[0])
    text = render(call)
    assert [part.split("<")[0] for part in text.config.split("; ")] == [
        "sm90::GatherTile", "GemmTile"
    ]  # fmt: skip
    golden.check(text.body, suffix=".cc")


@pytest.mark.parametrize(
    ("text", "dtype", "name"),
    [
        (VIT, DType.FLOAT16, "pp128x96c1"),
        (patches(64, 2, 32, (99, 72), 5), DType.BFLOAT16, "co128x96c1"),
        (patches(160, 1, 8, (40, 56), 0), DType.FLOAT16, "pp64x192c1"),
    ],
)
def test_hoppers_tiles_are_right(
    text: str, dtype: DType, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vitc.codegen.targets.gpu.sm90_gather._MOST", 99)
    call = first_call(text, (3,), dtype)
    record(call, 3, name)
    assert "GatherTile" in render(call).config
    found = errors(assign(text, dtype), tmp_path, target="cuda:sm_90a:emulated")
    assert 1e-5 < max(found.values()) < {DType.FLOAT16: 4e-3, DType.BFLOAT16: 3e-2}[dtype], found


@pytest.mark.parametrize(
    ("text", "dtype", "boundary"),
    [
        (patches(96, 3, 14, (28, 56), 1), DType.FLOAT16, None),  # rows of 28 bytes
        (patches(96, 3, 16, (48, 84), 1), DType.FLOAT16, None),  # rows of the image at 8 bytes
        (patches(48, 3, 16, (48, 80), 1), DType.FLOAT16, None),
        (VIT, DType.FLOAT16, DType.FLOAT32),
        (VIT, DType.TF32, None),
    ],
)
def test_others_are_portable(text: str, dtype: DType, boundary: DType | None) -> None:
    call, *_ = select(assign(text, dtype, boundary), find_target("cuda:sm_90a", (3,))).calls
    assert type(call.kernel) is GpuGemm


def test_the_model_takes_the_fastest_of_what_was_measured() -> None:
    file = Path(__file__).resolve().parents[2] / "benchmarks" / "h100" / "patches.json"
    measured: dict[int, dict[str, float]] = {}
    for row in json.loads(file.read_text())["timings"]:
        measured.setdefault(row["sizes"][0], {})[row["config"]] = row["us"]
    assert set(measured) == {197, 1576, 6304, 50432}
    for m, us in measured.items():
        problem = Problem(DType.FLOAT16, m, 768, 768, ("add",), 32)
        known: dict[str, LargeTile] = {}
        for tile in TILES:
            if isinstance(tile, LargeTile) and (tile.cluster, tile.consumers) == (1, 2):
                sizes = (tile.rows, tile.columns, tile.stages, str(tile.ping_pong).lower())
                known[", ".join(map(str, sizes))] = tile
        ours = {config: us[config] for config in us if config in known}
        clocks = {config: cost(known[config], problem, 132) for config in ours}
        assert min(clocks, key=clocks.__getitem__) == min(ours, key=ours.__getitem__)
        if m > 2000:
            assert all(abs(clocks[config] / 1700 / ours[config] - 1) < 0.13 for config in ours)


def test_tiles_that_would_spill_are_not_offered() -> None:
    """24576 sums of a warpgroup beside statistics: 4 bytes (nvcc 13.0)."""
    wide = patches(768, 3, 16, (224, 224), 1)
    offered = choice_at(first_call(wide, (256,)), 256).names
    assert "co128x192c1" in offered
    assert not {"pp128x192c1", "pp192x128c1"} & set(offered)
    plain = wide.split("  %z =")[0].replace("%y, %s =", "%y =").replace(", stats=32", "")
    assert "pp128x192c1" in choice_at(first_call(plain + "  return %y\n}", (256,)), 256).names
