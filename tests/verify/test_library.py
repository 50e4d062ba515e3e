"""Verification of a real library: a small ViT compiled for this CPU."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest
import timm
import torch
from torch import nn

import vitc
from vitc.verify import compare_steps, images, redraw, verify, weights_matter
from vitc.verify.localise import state_arrays

SHAPE = (3, 32, 32)

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="needs a C++ compiler (g++)")


@pytest.fixture(scope="module")
def model() -> nn.Module:
    made = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=10,
        init_values=0.1,
    ).eval()
    redraw(made, 1)
    return made


@pytest.fixture(scope="module")
def module(model: nn.Module) -> Iterator[vitc.CompiledModule]:
    with vitc.compile(model, batch=4, threads=1, name="small") as compiled:
        yield compiled


def test_it_verifies(module: vitc.CompiledModule, model: nn.Module) -> None:
    report = verify(module, model, batches=(3,)).require()
    assert report.batches == (1, 2, 3, 4)


def test_every_kernel_is_within_its_own_bound(
    module: vitc.CompiledModule, model: nn.Module
) -> None:
    steps, clobbered = compare_steps(module, module.graph, state_arrays(model), images(3, SHAPE))
    assert clobbered is None
    assert len(steps) == len(module.manifest["steps"])
    for step in steps:
        assert step.passed, step
        assert step.own < 2e-6, step
        assert step.drift is not None, step
        assert step.drift < 5e-6, step


@pytest.mark.parametrize(
    "name", ["blocks.1.mlp.fc1.weight", "blocks.0.attn.qkv.weight", "head.weight"]
)
def test_the_kernel_with_a_wrong_weight_is_named(
    module: vitc.CompiledModule, model: nn.Module, name: str
) -> None:
    state = model.state_dict()
    wrong = state[name].clone()
    wrong[0] *= 1.5
    try:
        module.load_weights({**state, name: wrong})
        finding = verify(module, model).finding
    finally:
        module.load_weights(state)
    assert finding is not None
    assert finding.stage == "kernel"
    assert finding.step is not None
    assert finding.step.loc.split()[0] == name.removesuffix(".weight")
    # Only the kernel that reads this weight is at fault, not those that use its result.
    assert [s for s in finding.steps if not s.passed] == [finding.step]


def test_zeroing_any_single_weight_fails_verification(
    module: vitc.CompiledModule, model: nn.Module
) -> None:
    effects = weights_matter(module, model, images(2, SHAPE))
    assert len(effects) == len(model.state_dict())
    for effect in effects:
        assert effect.caught, effect
        assert effect.follows, effect
    assert verify(module, model).passed


def test_another_model_does_not_verify(module: vitc.CompiledModule, model: nn.Module) -> None:
    state = {name: value.clone() for name, value in model.state_dict().items()}
    other = timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        patch_size=8,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=10,
        init_values=0.1,
        act_layer="gelu_tanh",
    ).eval()
    other.load_state_dict(state)
    with torch.inference_mode():
        finding = verify(module, other).finding
    assert finding is not None
    assert finding.stage == "frontend"
    assert "blocks.0.mlp.act" in finding.message
