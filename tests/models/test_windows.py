"""Swin, Swin v2 and LeViT: no kernel moves a tensor, and small models compute what timm does.

Every index map must be part of another kernel's load or store. Two blocks a stage show all there
is: a plain and a shifted window, a merge or a subsampling.
"""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import timm
import torch
from models.sweep import BOUNDS, build, cpu_target

import vitc
from vitc.codegen.select import select
from vitc.codegen.targets import find_target
from vitc.frontend import import_model
from vitc.ir.graph import Graph
from vitc.ops import Pointwise
from vitc.passes.pipeline import run_pipeline
from vitc.verify import images, redraw, reference, relative_error

# One name for each geometry: window and image size, stages, stem, form and activation. The names
# left out differ from one of these in widths and heads alone.
SWIN = ("swin_tiny_patch4_window7_224", "swin_base_patch4_window12_384", "swin_s3_tiny_224")
SWIN_V2 = (
    "swinv2_tiny_window8_256",
    "swinv2_tiny_window16_256",
    "swinv2_base_window12_192",
    "swinv2_base_window12to16_192to256",
    "swinv2_base_window12to24_192to384",
)
LEVIT = ("levit_128s", "levit_256d", "levit_conv_128s")
LEVIT_S8 = ("levit_384_s8", "levit_conv_512_s8")


def _kinds(name: str) -> dict[str, int]:
    """Kernels of a model with eight blocks; norms as tests/passes/test_models.py explains them."""
    if name in SWIN:
        return {"linear": 1 + 32 + 3 + 1, "norm": 2, "attention": 8, "reduce": 1}
    if name in SWIN_V2:
        return {"linear": 1 + 32 + 3 + 1, "norm": 1 + 16 + 3 + 1, "attention": 8, "reduce": 1}
    stem = 3 if name in LEVIT_S8 else 4
    return {"conv2d": stem, "linear": 24 + 10 + 1, "attention": 8, "reduce": 1}


@cache
def optimised(name: str) -> Graph:
    return run_pipeline(import_model(build(name)).graph)


every_geometry = pytest.mark.parametrize("name", [*SWIN, *SWIN_V2, *LEVIT, *LEVIT_S8])


@every_geometry
def test_kinds_of_ops(name: str) -> None:
    graph = optimised(name)
    live = [node for node in graph.nodes if node.output not in graph.constants]
    assert Counter(node.op.name for node in live if node.op.name != "move") == _kinds(name)


@pytest.mark.parametrize("target", ["cpu", "cuda:sm_80"])
@every_geometry
def test_no_kernel_moves_a_tensor(name: str, target: str) -> None:
    selection = select(optimised(name), find_target(target, (2,)))
    copies = [
        call.node.output
        for call in selection.calls
        if isinstance(call.node.op, Pointwise) and not call.node.op.steps and not call.node.op.stats
    ]
    assert not copies
    assert len(selection.calls) == sum(_kinds(name).values())
    stores = [line for line in selection.maps() if "attention" in line and "stores" in line]
    assert len(stores) == 8


SMALL: dict[str, Any] = {"depths": (2, 2), "num_classes": 10, "embed_dim": 64, "num_heads": (2, 4)}
ODD: dict[str, tuple[str, dict[str, Any]]] = {
    "padded": ("swin_tiny_patch4_window7_224", {"img_size": (72, 60), "window_size": 7}),
    "padded_v2": ("swinv2_tiny_window8_256", {"img_size": (72, 60), "window_size": 8}),
}


@pytest.mark.parametrize("name", ODD)
def test_windows_that_do_not_fit(name: str) -> None:
    """Also on new weights: bias tables, Swin v2's MLP for them and logit scales are recipes."""
    model_name, arguments = ODD[name]
    model = timm.create_model(model_name, **SMALL, **arguments).eval()
    redraw(model, seed=1)
    photos = images(2, (3, *arguments["img_size"]), seed=2)
    with vitc.compile(model, batch=2, target=cpu_target(), dtype="float32") as module:
        before = torch.as_tensor(module(photos))
        assert relative_error(before, reference(model, photos)) <= BOUNDS["cpu"]
        redraw(model, seed=3)
        module.load_weights(model.state_dict())
        after = torch.as_tensor(module(photos))
        assert relative_error(after, reference(model, photos)) <= BOUNDS["cpu"]
    assert relative_error(after, before) > 0.1
