"""A small ViT through Hopper's kernels, emulated, against timm."""

from __future__ import annotations

import timm
import torch

import vitc
from vitc.verify import images, redraw, reference, relative_error

SMALL = {"img_size": 32, "patch_size": 16, "depth": 1, "embed_dim": 64, "num_heads": 2}


def test_agrees_with_timm() -> None:
    model = timm.create_model("vit_tiny_patch16_224", num_classes=8, **SMALL).eval()
    redraw(model, seed=1)
    photos = images(2, (3, 32, 32), seed=2)
    expected = reference(model, photos)
    with vitc.compile(model, batch=2, target="cuda:sm_90a:emulated", dtype="float16") as module:
        kernels = [step["kernel"] for step in module.manifest["steps"]]
        result = torch.as_tensor(module(photos.half()))
    assert kernels.count("sm90_gemm") >= 4
    with torch.no_grad():
        eager = model.half()(photos.half()).float()
    assert 1e-5 < relative_error(result, expected) < 1.5 * relative_error(eager, expected)
