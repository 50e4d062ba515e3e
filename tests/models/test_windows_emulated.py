"""Small Swin, Swin v2 and LeViT through CUDA kernels, emulated, against timm."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

import vitc
from vitc.verify import images, redraw, reference, relative_error

SWIN = {"embed_dim": 24, "num_classes": 7, "window_size": 4}
MERGED = {**SWIN, "depths": (2, 1), "num_heads": (3, 6)}
ONE_STAGE = {**SWIN, "depths": (2,), "num_heads": (3,)}
LEVIT = {"embed_dim": (128, 256), "num_heads": (4, 6), "depth": (1, 1), "num_classes": 7}
# Sizes at which windows are shifted and reach over the edges, and at which LeViT has 16 and 4
# tokens. Most of the time goes into compiling, so no model has more kernels than it must.
SWIN_TINY = "swin_tiny_patch4_window7_224"
MODELS: dict[str, tuple[str, str, str, tuple[int, int], dict[str, Any]]] = {
    "swin": ("sm_80", "float16", SWIN_TINY, (40, 44), MERGED),
    "swin-f32": ("sm_80", "float32", SWIN_TINY, (24, 28), MERGED),
    "swin-hopper": ("sm_90a", "float16", SWIN_TINY, (24, 28), MERGED),
    "swinv2": ("sm_80", "float32", "swinv2_tiny_window8_256", (24, 28), ONE_STAGE),
    "levit": ("sm_80", "float16", "levit_128s", (64, 64), LEVIT),
}


@pytest.mark.parametrize("name", MODELS)
def test_agrees_with_timm(name: str) -> None:
    arch, dtype, model_name, size, arguments = MODELS[name]
    model = timm.create_model(model_name, img_size=size, **arguments).eval()
    redraw(model, seed=1)
    photos = images(2, (3, *size), seed=2)
    expected = reference(model, photos)
    photos = photos.to(getattr(torch, dtype))
    with vitc.compile(
        model, batch=2, target=f"cuda:{arch}:emulated", dtype=dtype, image_size=size
    ) as module:
        kernels = [step["kernel"] for step in module.manifest["steps"]]
        result = torch.as_tensor(module(photos))
    if model_name == SWIN_TINY:
        assert kernels.count("norm") == 2  # that of the embedding, and the last
        # All of the blocks; patches, the padded merge and the head of 7 classes are others'.
        assert kernels.count("sm90_gemm") == (12 if arch == "sm_90a" else 0)
    if dtype == "float32":
        assert relative_error(result, expected) < 1e-5
        return
    with torch.no_grad():
        eager = model.half()(photos).float()
    assert 1e-5 < relative_error(result, expected) < 1.5 * relative_error(eager, expected)
