"""Redrawn weights and images: reproducible, sane, and each of them matters."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from vitc.verify import eager, images, redraw, reference, relative_error


def tiny(**options: object) -> nn.Module:
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=32,
        depth=2,
        embed_dim=32,
        num_heads=2,
        num_classes=10,
        **options,
    ).eval()


def test_same_seed_same_weights_and_another_seed_others() -> None:
    first, second = tiny(), tiny()
    redraw(first, 3)
    redraw(second, 3)
    assert all(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )
    redraw(second, 4)
    assert not any(
        torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)
    )


def test_nothing_keeps_its_initial_zeros_or_ones() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), tiny(init_values=1e-5, qk_norm=True, reg_tokens=2)
    )
    before = {name: value.clone() for name, value in model.state_dict().items()}
    redraw(model, 0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            assert (value != before[name]).float().mean() > 0.99, name
            assert value.isfinite().all()
            assert value.abs().min() > 0
    assert (model[1].running_var > 0.5).all()
    gamma = model.state_dict()["2.blocks.0.ls1.gamma"]
    assert ((gamma >= 0.5) & (gamma <= 1.5)).all()


def test_buffers_that_are_architecture_stay() -> None:
    model = nn.Module()
    model.register_buffer("grid", torch.arange(4.0), persistent=False)
    model.register_buffer("steps", torch.zeros((), dtype=torch.long))
    redraw(model)
    assert torch.equal(model.grid, torch.arange(4.0))
    assert model.steps == 0


def test_activations_stay_of_order_one_through_depth() -> None:
    model = timm.create_model(
        "vit_tiny_patch16_224", img_size=32, depth=24, embed_dim=64, num_heads=2
    ).eval()
    redraw(model, 1)
    seen: list[float] = []
    for block in model.blocks:
        block.mlp.register_forward_hook(lambda _m, _i, out: seen.append(float(out.detach().std())))
    model(images(2, (3, 32, 32)))
    assert len(seen) == 24
    assert all(0.1 < value < 3.0 for value in seen), seen


def test_images_differ_and_do_not_depend_on_the_batch() -> None:
    four = images(4, (3, 48, 32), seed=5)
    assert four.shape == (4, 3, 48, 32)
    assert four.dtype == torch.float32
    assert torch.equal(four[:2], images(2, (3, 48, 32), seed=5))
    assert not torch.equal(four, images(4, (3, 48, 32), seed=6))
    for i in range(4):
        for j in range(i):
            assert relative_error(four[i], four[j]) > 0.3
    many = images(64, (3, 64, 64))
    assert abs(float(many.mean())) < 0.3
    assert 0.7 < float(many.std()) < 1.3
    assert float(many.abs().max()) <= 2.6


def test_the_reference_is_float64_and_leaves_the_model_alone() -> None:
    model = tiny()
    redraw(model, 0)
    model.train()
    x = images(5, (3, 32, 32))
    whole = reference(model, x, chunk=5)
    assert whole.dtype == torch.float64
    assert relative_error(reference(model, x, chunk=2), whole) < 1e-14
    assert next(model.parameters()).dtype == torch.float32
    assert model.training
    assert 1e-9 < relative_error(eager(model, x, torch.float32), whole) < 1e-5
    assert 1e-4 < relative_error(eager(model, x, torch.bfloat16), whole) < 5e-2
    assert reference(model, x, features=True).shape == (5, 5, 32)


def test_relative_error_counts_nan_as_infinite() -> None:
    x = torch.ones(3)
    assert relative_error(torch.tensor([1.0, float("nan"), 1.0]), x) == float("inf")
    assert relative_error(torch.tensor([1.0, 1.0, 2.0]), x) == pytest.approx(3**-0.5)
