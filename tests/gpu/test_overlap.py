"""Dependent launches: a kernel that starts before the one before it has ended reads what it should.

Launched one by one, with the CPU waiting for each, kernels cannot overlap; overlapped, run after
run, they must compute the same bits.
"""

from __future__ import annotations

import subprocess
import sys
import textwrap
from os import environ
from pathlib import Path

import pytest
import timm
import torch

import vitc
from vitc.devices import Device
from vitc.verify import images, redraw

ROOT = Path(__file__).parents[2]
MODELS = {
    # Convolutions, group norms, pools, norms: row kernels between GEMMs.
    "hybrid": ("vit_tiny_r_s16_p8_224", {"img_size": 64, "depth": 2}),
    "vit": ("vit_tiny_patch16_224", {"img_size": (96, 80), "depth": 3}),
}


@pytest.mark.parametrize("kind", MODELS)
@pytest.mark.parametrize("disable", [(), ("row_statistics",)], ids=["", "norms"])
def test_overlap_changes_nothing(
    kind: str, disable: tuple[str, ...], nvidia: Device, tmp_path: Path
) -> None:
    if int(nvidia.arch.removeprefix("sm_")) < 90:
        pytest.skip(f"{nvidia.arch} has no dependent launches; sm_90 and later have")
    name, options = MODELS[kind]
    model = timm.create_model(name, **options).eval()
    redraw(model, seed=3)
    path = tmp_path / "model.so"
    with vitc.compile(model, batch=[1, 4], output=path, disable=disable) as module:
        shape = module.inputs[0].shape[1:]
        x = images(4, (shape[0], shape[1], shape[2]), seed=9).half()
        torch.save(x, tmp_path / "x.pt")
        expected = one_by_one(path, tmp_path)
        inputs = [(x[:batch] * scale).cuda() for batch in (1, 4) for scale in (1, -1)]
        for _ in range(200):
            for given, wanted in zip(inputs, expected, strict=True):
                assert torch.equal(module(given).cpu(), wanted)


def one_by_one(path: Path, folder: Path) -> list[torch.Tensor]:
    """The results for the inputs of the test, from a process in which each launch is waited for."""
    program = f"""
        import torch, vitc

        x = torch.load({str(folder / "x.pt")!r})
        with vitc.load({str(path)!r}) as module:
            results = [
                module((x[:batch] * scale).cuda()).cpu() for batch in (1, 4) for scale in (1, -1)
            ]
        torch.save(results, {str(folder / "y.pt")!r})
    """
    alone = {"CUDA_LAUNCH_BLOCKING": "1", "VITC_GRAPHS": "0"}
    command = [sys.executable, "-c", textwrap.dedent(program)]
    subprocess.run(command, cwd=ROOT, env=environ | alone, check=True)
    return torch.load(folder / "y.pt")
