"""Whole models of timm, small: every pass alone and all together mean what the import meant."""

from __future__ import annotations

from collections import Counter
from functools import cache
from typing import Any

import pytest
import timm
from passes.support import difference, kernels

from vitc.frontend import import_model
from vitc.ir.graph import Graph
from vitc.ir.types import DType
from vitc.ir.verify import verify
from vitc.passes.options import PassOptions
from vitc.passes.pipeline import PIPELINE, known_names, run_passes, run_pipeline

SMALL: dict[str, Any] = {"depth": 2, "embed_dim": 48, "num_heads": 3, "num_classes": 7}
VITS: dict[str, tuple[str, dict[str, Any]]] = {
    "vit": ("vit_base_patch16_224", {"img_size": (32, 48)}),
    "features": ("vit_base_patch16_224", {"img_size": 32, "num_classes": 0}),
    "distilled": ("deit_base_distilled_patch16_224", {"img_size": 32}),
    "clip": ("vit_base_patch32_clip_quickgelu_224", {"img_size": 64}),
    "average": ("vit_base_patch16_plus_240", {"img_size": 32, "global_pool": "avg"}),
    "average_of_normed": (
        "vit_base_patch16_224",
        {"img_size": 32, "global_pool": "avg", "fc_norm": False},
    ),
    "layer_scale": ("deit3_base_patch16_224", {"img_size": 32}),
    "qk_norm": ("vit_base_patch16_224", {"img_size": 32, "qk_norm": True}),
    "swiglu": ("vit_giant_patch14_reg4_dinov2", {"img_size": 28, "mlp_ratio": 4}),
    "map": ("vit_so150m_patch16_reg4_map_256", {"img_size": 64}),
    "differential": ("vit_dpwee_patch16_reg1_gap_256", {"img_size": 64}),
    "rms": ("aimv2_large_patch14_224", {"img_size": 28}),
    "parallel": ("vit_small_patch16_18x2_224", {"img_size": 32}),
    "parallel_scaling": ("vit_base_patch16_xp_224", {"img_size": 32}),
    "post_norm": ("vit_base_patch16_rpn_224", {"img_size": 32}),
    "hybrid": ("vit_small_r26_s32_224", {"img_size": 64, "depth": 1}),
}
SWIN: dict[str, Any] = {
    "depths": (2, 2),
    "embed_dim": 24,
    "num_heads": (3, 6),
    "num_classes": 7,
    "window_size": 3,
    "img_size": 48,
}
LEVIT: dict[str, Any] = {"depth": (2, 2, 2), "num_classes": 7, "img_size": 128}
WINDOWED: dict[str, tuple[str, dict[str, Any]]] = {
    "swin": ("swin_tiny_patch4_window7_224", SWIN),
    # 10 x 11 pixels: windows and the merge reach over the edges.
    "swin_padded": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": (40, 44)}),
    "swin_rectangular": ("swin_tiny_patch4_window7_224", {**SWIN, "img_size": (48, 24)}),
    "swin_features": ("swin_tiny_patch4_window7_224", {**SWIN, "num_classes": 0}),
    "swin_s3": ("swin_s3_tiny_224", {**SWIN, "window_size": (3, 6)}),
    "swinv2": ("swinv2_tiny_window8_256", SWIN),
    "swinv2_padded": ("swinv2_tiny_window8_256", {**SWIN, "img_size": (40, 44)}),
    "levit": ("levit_128s", LEVIT),
    "levit_conv": ("levit_conv_128s", LEVIT),
    "levit_gelu": ("levit_256d", {**LEVIT, "act_layer": "gelu", "attn_act_layer": "gelu"}),
}
MODELS = {**{name: (m, {**SMALL, **given}) for name, (m, given) in VITS.items()}, **WINDOWED}


@cache
def imported(name: str) -> Graph:
    model, arguments = MODELS[name]
    size = arguments["img_size"] if arguments.items() >= LEVIT.items() else None
    return import_model(timm.create_model(model, **arguments).eval(), image_size=size).graph


@cache
def optimised(name: str) -> Graph:
    return run_pipeline(imported(name))


every_model = pytest.mark.parametrize("name", MODELS)
CHEAP = ("distilled", "qk_norm")  # between them nearly every rule applies


@every_model
def test_all_passes_are_exact(name: str) -> None:
    assert difference(imported(name), optimised(name)) < 1e-10


@every_model
def test_each_pass_alone_is_exact(name: str) -> None:
    graph = imported(name)
    for pass_name in dict.fromkeys(pass_.name for pass_ in PIPELINE):
        alone = run_passes(graph, [pass_name])
        if alone is not graph:
            assert difference(graph, alone) < 1e-10, pass_name


@pytest.mark.parametrize("name", CHEAP)
def test_each_can_be_disabled(name: str) -> None:
    graph = imported(name)
    for disabled in known_names():
        result = run_pipeline(graph, PassOptions(disable=frozenset({disabled})))
        assert difference(graph, result) < 1e-10, disabled


@pytest.mark.parametrize("name", [*CHEAP, "clip", "swiglu", "map", *WINDOWED])
def test_every_application_of_a_rule_is_exact(name: str) -> None:
    run_pipeline(imported(name), PassOptions(check=True))


# Kernels of the two blocks, the embedding and the head. In a last block that is read through its
# class token, q is a product of its own. "linear" counts products; a norm left over is a kernel.
COUNTS = {
    "vit": {"linear": 1 + 4 + 5 + 1, "attention": 2},
    "features": {"linear": 1 + 4 + 5, "attention": 2, "norm": 1},
    "distilled": {"linear": 1 + 4 + 5 + 1, "attention": 2, "norm": 1},
    "clip": {"linear": 1 + 4 + 5 + 1, "attention": 2, "norm": 1},
    "average": {"linear": 1 + 4 + 4 + 1, "attention": 2, "reduce": 1, "norm": 1},
    "average_of_normed": {"linear": 1 + 4 + 4 + 1, "attention": 2, "reduce": 1, "norm": 1},
    "layer_scale": {"linear": 1 + 4 + 5 + 1, "attention": 2},
    "qk_norm": {"linear": 1 + 4 + 5 + 1, "attention": 2, "norm": 4},
    "swiglu": {"linear": 1 + 5 + 6 + 1, "attention": 2},
    "map": {"linear": 1 + 4 + 4 + 4 + 1, "attention": 3},
    "parallel": {"linear": 1 + 8 + 10 + 1, "attention": 4},
    # The norms are that of the embedding, which nothing writes that could sum it up, and the last,
    # whose rows are averaged before a product.
    "swin": {"linear": 1 + 8 + 1 + 8 + 1, "attention": 4, "norm": 2, "reduce": 1},
    "swin_padded": {"linear": 1 + 8 + 1 + 8 + 1, "attention": 4, "norm": 2, "reduce": 1},
    "swin_rectangular": {"linear": 1 + 8 + 1 + 8 + 1, "attention": 4, "norm": 2, "reduce": 1},
    "swin_features": {"linear": 1 + 8 + 1 + 8, "attention": 4, "norm": 2, "reduce": 1},
    "swin_s3": {"linear": 1 + 8 + 1 + 8 + 1, "attention": 4, "norm": 2, "reduce": 1},
    # Two norms a block, behind attention and MLP, take the residual sums.
    "swinv2": {"linear": 1 + 8 + 1 + 8 + 1, "attention": 4, "norm": 1 + 8 + 1 + 1, "reduce": 1},
    "swinv2_padded": {"linear": 19, "attention": 4, "norm": 11, "reduce": 1},
    # A block is qkv, attention, projection, MLP; a subsampling q, kv, attention, projection, MLP.
    "levit": {"conv2d": 4, "linear": 3 * 8 + 2 * 5 + 1, "attention": 8, "reduce": 1},
    "levit_conv": {"conv2d": 4, "linear": 3 * 8 + 2 * 5 + 1, "attention": 8, "reduce": 1},
    "levit_gelu": {"conv2d": 4, "linear": 3 * 8 + 2 * 5 + 1, "attention": 8, "reduce": 1},
}


@pytest.mark.parametrize("name", COUNTS)
def test_kernels(name: str) -> None:
    assert Counter(kernels(optimised(name))) == COUNTS[name]


@every_model
def test_what_code_generation_relies_on(name: str) -> None:
    graph = optimised(name)
    live = [node for node in graph.nodes if node.output not in graph.constants]
    unwanted = {"pointwise", "softmax", "matmul", "concat"}
    if name == "differential":  # subtracts attentions, which carry no steps
        unwanted.remove("pointwise")
    assert not unwanted & {node.op.name for node in live}
    for node in live:
        if node.op.name == "move":
            source = graph.producers.get(node.inputs[0])
            assert source is None or source.op.name != "move"
        assert getattr(node.op, "scale", 1.0) == 1.0 or name == "differential"


def test_vit_block_by_block() -> None:
    """Twelve blocks of qkv, attention, proj, fc1, fc2; one product before and one behind."""
    model = timm.create_model("vit_base_patch16_224", embed_dim=48, num_heads=3).eval()
    graph = run_pipeline(import_model(model).graph)
    block = ["linear", "attention", "linear", "linear", "linear"]
    last = ["linear", *block]  # q apart
    assert kernels(graph) == ["linear", *block * 11, *sorted(last[:2]), *last[2:], "linear"] or (
        kernels(graph) == ["linear", *block * 11, *last, "linear"]
    )
    rows = [
        graph.types[node.output].shape[1] for node in graph.nodes if "attention" in node.op.name
    ]
    assert len(rows) == 12
    tokens = [str(graph.types[n.output]) for n in graph.nodes if n.op.name == "attention"]
    assert tokens[:11] == ["f32[B,3,197,16]"] * 11
    assert tokens[11] == "f32[B,3,1,16]"
    fc1 = [
        node for node in graph.nodes if any(s.kind == "gelu" for s in getattr(node.op, "steps", ()))
    ]
    assert [str(graph.types[n.output]) for n in fc1] == ["f32[B,197,192]"] * 11 + ["f32[B,192]"]


@pytest.mark.parametrize("name", ["vit", "clip", "hybrid", "map", "swin_padded", "swinv2", "levit"])
def test_bfloat16_graphs_verify_and_mean_the_same(name: str) -> None:
    graph = run_pipeline(imported(name), PassOptions(dtype=DType.BFLOAT16))
    verify(graph)
    assert difference(imported(name), graph) < 1e-10
    for node in graph.nodes:
        if node.op.name == "linear" and node.output not in graph.constants:
            assert graph.types[node.inputs[1]].dtype is DType.BFLOAT16
    assert graph.types[graph.outputs[0]].dtype is DType.FLOAT32


def test_centred_values_have_other_names() -> None:
    """A name of the imported graph keeps its meaning, so that values can be compared by name."""
    before, after = imported("vit"), optimised("vit")
    stream = [n.output for n in after.nodes if getattr(n.op, "stats", 0)]
    assert stream
    assert not set(stream) & set(before.types)


@pytest.mark.parametrize("name", ["levit", "levit_conv", "levit_gelu"])
def test_batch_norms_leave_a_bias(name: str) -> None:
    graph = optimised(name)
    live = [node for node in graph.nodes if node.output not in graph.constants]
    kinds = {step.kind for node in live for step in getattr(node.op, "steps", ())}
    assert kinds == {"add", "gelu" if name == "levit_gelu" else "hardswish"}
    for node in live:  # v keeps its bias: an activation stands between it and the projection
        if node.op.name == "attention":
            assert len(getattr(node.op, "steps", ())) == 1
