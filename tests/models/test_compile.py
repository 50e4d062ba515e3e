"""vitc.compile from end to end: a tiny ViT through every argument, against timm in float64."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import nn

import vitc
from vitc.verify import images, redraw, reference, relative_error

BOUND = 1e-5
SHAPE = (3, 32, 48)
SMALL = {"img_size": SHAPE[1:], "patch_size": 16, "depth": 2, "embed_dim": 48, "num_heads": 3}

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")


def best_target() -> str:
    """One instruction set compiles in half the time of all; the kernels' own tests try each."""
    flags = set(Path("/proc/cpuinfo").read_text().split())
    return "cpu:avx512" if {"avx512f", "avx512bw", "avx512dq", "avx512vl"} <= flags else "cpu:avx2"


TARGET = best_target()


def tiny(seed: int = 1, **options: Any) -> nn.Module:
    arguments = {**SMALL, "num_classes": 10, "init_values": 0.1, **options}
    made = timm.create_model("vit_tiny_patch16_224", **arguments).eval()
    redraw(made, seed)
    return made


def agree(module: vitc.Module, model: nn.Module, *batches: int, features: bool = False) -> None:
    for batch in batches:
        photos = images(batch, SHAPE, seed=batch)
        expected = reference(model, photos, features=features)
        result = module(photos)
        assert result.shape == expected.shape
        assert relative_error(result, expected) < BOUND


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("compile")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    return tiny()


@pytest.fixture(scope="module")
def module(model: nn.Module, folder: Path) -> Iterator[vitc.CompiledModule]:
    with vitc.compile(
        model, batch=[1, 8], target=TARGET, output=folder / "made/tiny.so", dump_dir=folder / "dump"
    ) as made:
        yield made


def test_every_batch_up_to_the_largest(module: vitc.CompiledModule, model: nn.Module) -> None:
    agree(module, model, 1, 2, 3, 8)
    assert module.manifest["batch"] == {"max": 8, "tuned": [1, 8]}
    with pytest.raises(vitc.errors.InputError, match="9"):
        module(images(9, SHAPE, seed=0))


def test_what_is_reported(module: vitc.CompiledModule, folder: Path) -> None:
    assert module.path == folder / "made" / "tiny.so"
    assert os.listdir(module.path.parent) == ["tiny.so"]
    names = [name for name, _ in module.report.stages]
    assert names == ["import", "passes", "select", "plan", "render", "build", "load"]
    assert module.report.bytes == module.path.stat().st_size
    assert len(module.manifest["steps"]) < len(module.imported.nodes) / 2
    assert module.manifest["target"] == TARGET


def test_every_form_is_dumped(module: vitc.CompiledModule, folder: Path) -> None:
    from vitc.ir.text import parse_graph
    from vitc.passes.pipeline import PIPELINE

    dump = folder / "dump"
    graphs = sorted(path.name for path in dump.glob("*.vit"))
    passes = [f"{i:02d}-{p.name}.vit" for i, p in enumerate(PIPELINE, 1)]
    assert graphs == ["00-imported.vit", *passes]
    assert parse_graph((dump / graphs[0]).read_text()) == module.imported
    assert parse_graph((dump / graphs[-1]).read_text()) == module.graph
    sources = {path.stem for path in (dump / "sources").iterdir()}
    isa = TARGET.removeprefix("cpu:")
    assert sources == {"model", *(f"{s['symbol']}_{isa}" for s in module.manifest["steps"])}
    assert (dump / "manifest.json").is_file()


def test_new_weights_and_save(module: vitc.CompiledModule, tmp_path: Path) -> None:
    other = tiny(seed=2)
    with vitc.load(module.path) as loaded:
        loaded.load_weights(other.state_dict())
        agree(loaded, other, 3)
        saved = loaded.save(tmp_path / "other.so")
    with vitc.load(saved) as again:
        agree(again, other, 2)


ALONE = """
import sys
import numpy as np
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("torch", "timm", "jinja2", "typer", "rich"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import vitc
with vitc.load(sys.argv[1]) as module:
    np.save(sys.argv[3], module(np.load(sys.argv[2])))
"""


def test_a_second_process_needs_numpy_alone(
    module: vitc.CompiledModule, model: nn.Module, tmp_path: Path
) -> None:
    photos = images(2, SHAPE, seed=4)
    np.save(tmp_path / "in.npy", photos.numpy())
    files = [str(module.path), str(tmp_path / "in.npy"), str(tmp_path / "out.npy")]
    subprocess.run(
        [sys.executable, "-c", ALONE, *files],
        check=True,
        env={"PATH": "", "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    result = torch.from_numpy(np.load(tmp_path / "out.npy"))
    assert relative_error(result, reference(model, photos)) < BOUND


def test_external_weights_and_disabled_rewrites(model: nn.Module, folder: Path) -> None:
    output = folder / "outside.so"
    disabled = {"row_statistics", "centre_residual", "sink_rows", "fold_norm_affine", "embed_table"}
    made = vitc.compile(
        model, batch=2, target=TARGET, output=output, weights="external", disable=disabled
    )
    with made:
        agree(made, model, 2)
        assert made.manifest["disable"] == sorted(disabled)
    beside = output.with_suffix(".safetensors")
    assert beside.stat().st_size > output.stat().st_size / 4
    beside.unlink()
    with pytest.raises(vitc.errors.LoadError, match=r"outside\.safetensors"):
        vitc.load(output)


def test_features_without_a_head(folder: Path) -> None:
    headless = tiny(num_classes=0)
    with vitc.compile(headless, batch=1, target=TARGET) as pooled:
        agree(pooled, headless, 1)
        temporary = pooled.path
    with vitc.compile(headless, batch=2, target=TARGET, features=True) as made:
        agree(made, headless, 1, 2, features=True)
        assert made.outputs[0].shape == (2, 1 + 2 * 3, 48)
    del pooled
    assert not temporary.exists()


def test_an_exported_program(model: nn.Module) -> None:
    batch = torch.export.Dim("batch", min=1, max=4)
    program = torch.export.export(
        model, (images(2, SHAPE, seed=0),), dynamic_shapes=({0: batch},), strict=False
    )
    with vitc.compile(program, batch=4, target=TARGET, name="exported") as made:
        agree(made, model, 1, 4)
        assert made.manifest["name"] == "exported"


def test_a_name_and_a_checkpoint(tmp_path: Path) -> None:
    trained = timm.create_model("test_vit", img_size=SHAPE[1:]).eval()
    redraw(trained, 5)
    save_file(trained.state_dict(), tmp_path / "trained.safetensors")
    with vitc.compile(
        "test_vit",
        batch=1,
        target=TARGET,
        image_size=SHAPE[1:],
        checkpoint=tmp_path / "trained.safetensors",
        threads=1,
    ) as made:
        agree(made, trained, 1)


def test_bfloat16(model: nn.Module) -> None:
    """Not worse than 1.5 times eager bfloat16, as verification asks."""
    photos = images(2, SHAPE, seed=3)
    expected = reference(model, photos)
    with torch.no_grad():
        eager = tiny().bfloat16()(photos.bfloat16()).float()
    with vitc.compile(model, batch=2, target=TARGET, dtype="bfloat16") as made:
        error = relative_error(made(photos), expected)
    assert 1e-4 < error < 1.5 * relative_error(eager, expected)
