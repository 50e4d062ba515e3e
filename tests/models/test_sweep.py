"""The sweep on a few names that together have every feature of timm's ViTs.

`python tests/models/sweep.py` runs all of them; benchmarks/sweep.json holds its last result.
"""

from __future__ import annotations

import pytest
from models.sweep import check, names

# Chosen so that each kind of block, norm, gate, activation, pooling, token count, stem and ATen
# call that occurs in any of the names occurs in one of these.
FEATURES = {
    "vit_tiny_patch16_224": "class token",
    "vit_base_patch16_clip_quickgelu_224": "norm before the blocks, quick GELU",
    "vit_base_patch32_siglip_gap_256": "tanh GELU, average pooling",
    "vit_small_patch14_reg4_dinov2": "register tokens, LayerScale",
    "vit_little_patch16_reg4_gap_256": "register tokens, average pooling",
    "vit_giant_patch14_reg1_tipsv2": "SwiGLU in one matrix",
    "vit_base_patch16_radio_v3": "eight prefix tokens",
    "vit_base_patch16_rpn_224": "norms behind the branches",
    "vit_small_patch16_18x2_224": "parallel branches",
    "vit_pwee_patch16_reg1_gap_256": "attention and MLP in one projection",
    "vit_dwee_patch16_reg1_gap_256": "differential attention",
    "vit_dpwee_patch16_reg1_gap_256": "differential attention and MLP in one projection",
    "vit_base_patch16_xp_224": "RMSNorm of queries and keys",
    "vit_base_mci_224": "convolutional stem with batch norms",
    "vit_tiny_r_s16_p8_224": "ResNetV2 stem alone",
    "vit_small_r26_s32_224": "ResNetV2: standardised convolutions, group norms",
    "vit_small_resnet50d_s16_224": "ResNet: batch norms, average pooling",
    "aimv2_large_patch14_224": "RMSNorm, SwiGLU",
    "beit3_base_patch16_224": "norms inside attention and MLP",
    "deit3_small_patch16_384": "class token without position",
    "deit_tiny_distilled_patch16_224": "two heads",
    "test_vit": "position embedding interpolated in the graph",
    "test_vit2": "LayerScale, few channels",
    "test_vit3": "attention pooling",
    "test_vit4": "RMSNorm behind the pooling",
}


def test_the_names_are_timms() -> None:
    known = names(["vit"])
    assert set(FEATURES) <= set(known)
    assert len(known) == len(set(known)) >= 150


@pytest.mark.parametrize("name", FEATURES, ids=lambda name: f"{name}-{FEATURES[name]}")
def test_import(name: str) -> None:
    outcome = check(name, "import")
    assert outcome.verified, outcome
