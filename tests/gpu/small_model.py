"""Compiles a small ViT for the GPU, runs and verifies it: what compute-sanitizer is pointed at.

compute-sanitizer --tool racecheck python3 tests/gpu/small_model.py cuda:sm_80 float16
"""

from __future__ import annotations

import sys

import timm

import vitc
from vitc.verify import redraw, verify


def main(target: str, dtype: str) -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=(96, 80), depth=2, embed_dim=128, num_heads=2
    ).eval()
    redraw(model, seed=3)
    with vitc.compile(model, batch=[1, 5], target=target, dtype=dtype) as module:
        report = verify(module, model.cuda(), localise=False).require()
        print(f"{target} {dtype}: error {report.error:.1e}, bound {report.bound:.1e}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
