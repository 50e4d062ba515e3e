"""Whole models from every source: names, modules, exported programs, checkpoints."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from frontend.support import EXACT, error_of, interpreted
from torch import nn
from torch.export import Dim, export

from vitc.errors import WeightsError
from vitc.frontend import Imported, import_model
from vitc.ir.types import Batch
from vitc.verify import images, redraw, relative_error

NAME = "vit_tiny_patch16_224"


def vit(name: str = NAME, **arguments: object) -> nn.Module:
    arguments = {"depth": 2, "img_size": 64, "num_classes": 7, **arguments}
    model = timm.create_model(name, **arguments).eval()
    redraw(model, seed=1)
    return model


def test_what_an_import_tells() -> None:
    model = vit()
    imported = import_model(model)
    graph = imported.graph
    assert (graph.name, imported.name, imported.source) == (NAME, NAME, model)
    assert [(port.name, str(port.type)) for port in graph.inputs] == [("x", "f32[B,3,64,64]")]
    assert [str(graph.types[name]) for name in graph.outputs] == ["f32[B,7]"]
    assert {port.name for port in graph.weights} == set(model.state_dict())
    assert imported.preprocess["input_size"] == (3, 64, 64)
    assert imported.preprocess["mean"] == (0.5, 0.5, 0.5)
    assert imported.preprocess["interpolation"] == "bicubic"
    qkv = graph.producers["blocks.0.attn.qkv"]
    assert qkv.op.name == "linear"
    assert qkv.loc.startswith("blocks.0.attn.qkv attention.py:")
    assert error_of(model, imported, (3, 64, 64)) <= EXACT


def test_weights_are_not_copied() -> None:
    model = vit()
    state = import_model(model).state
    assert all(np.shares_memory(state[name], tensor) for name, tensor in model.state_dict().items())


def test_the_model_stays_as_it_is() -> None:
    model = vit()
    before, forward = {name: t.clone() for name, t in model.state_dict().items()}, model.forward
    import_model(model, features=True)
    assert model.forward == forward
    assert not model.training
    assert all(torch.equal(before[name], t) for name, t in model.state_dict().items())


@pytest.mark.parametrize("arguments", [{"num_classes": 0}, {"num_classes": 0, "global_pool": ""}])
def test_models_without_a_head(arguments: dict[str, object]) -> None:
    model = vit(**arguments)
    assert error_of(model, import_model(model), (3, 64, 64)) <= EXACT


@pytest.mark.parametrize("pool", ["avg", "max", "avgmax", "map", "prr"])
def test_pooling(pool: str) -> None:
    model = vit(global_pool=pool, qk_norm=True)
    assert error_of(model, import_model(model), (3, 64, 64)) <= EXACT


def test_features() -> None:
    model = vit()
    imported = import_model(model, features=True)
    assert imported.graph.types[imported.graph.outputs[0]].shape == (Batch(), 17, 192)
    assert "head.weight" not in {port.name for port in imported.graph.weights}
    assert "head.weight" in imported.state
    assert error_of(model, imported, (3, 64, 64), features=True) <= EXACT


def test_rectangular_images() -> None:
    model = vit(img_size=(48, 80))
    assert error_of(model, import_model(model), (3, 48, 80)) <= EXACT


def test_size_set_on_the_module() -> None:
    model = vit()
    model.set_input_size(img_size=(32, 96))
    assert error_of(model, import_model(model), (3, 32, 96)) <= EXACT


def test_position_embedding_resized_in_the_graph() -> None:
    model = vit(dynamic_img_size=True)
    imported = import_model(model, image_size=(96, 48))
    assert error_of(model, imported, (3, 96, 48)) <= EXACT


def test_padding_to_whole_patches() -> None:
    model = vit(dynamic_img_size=True, dynamic_img_pad=True)
    assert error_of(model, import_model(model, image_size=(60, 70)), (3, 60, 70)) <= EXACT


def test_grey_images() -> None:
    model = vit(in_chans=1)
    assert error_of(model, import_model(model), (1, 64, 64)) <= EXACT


def test_attention_written_out(monkeypatch: pytest.MonkeyPatch) -> None:
    model = vit()
    for block in model.blocks:
        block.attn.fused_attn = False
    imported = import_model(model)
    assert "softmax" in {node.op.name for node in imported.graph.nodes}
    assert error_of(model, imported, (3, 64, 64)) <= EXACT


def test_by_name() -> None:
    imported = import_model(
        NAME, image_size=(32, 48), pretrained=False, depth=1, num_classes=5, name="tiny-5"
    )
    assert (imported.name, imported.graph.name) == ("tiny-5", "tiny_5")
    assert imported.graph.inputs[0].type.shape == (Batch(), 3, 32, 48)
    assert error_of(imported.source, imported, (3, 32, 48)) <= EXACT


def test_exported_program(tmp_path: Path) -> None:
    model = vit()
    batch = ({0: Dim("batch", min=1)},)
    program = export(model, (torch.zeros(2, 3, 64, 64),), dynamic_shapes=batch)
    assert error_of(model, import_model(program, max_batch=512), (3, 64, 64)) <= EXACT
    path = tmp_path / "tiny.pt2"
    torch.export.save(program, path)
    loaded = import_model(str(path))
    assert loaded.name == "tiny"
    assert error_of(model, loaded, (3, 64, 64)) <= EXACT


def test_caches_of_earlier_runs_do_not_become_constants() -> None:
    model = timm.create_model("levit_128s").eval()
    with torch.inference_mode():
        model(torch.zeros(1, 3, 224, 224))  # fills the bias caches
    redraw(model, seed=1)
    graph = import_model(model).graph
    assert "stages.0.blocks.0.attn.attention_biases" in {port.name for port in graph.weights}


# Checkpoints: read by timm's own loaders, so that names and position embeddings are converted.


def _same(imported: Imported, model: nn.Module) -> bool:
    state = model.state_dict()
    return all(np.array_equal(imported.state[name], state[name].numpy()) for name in state)


def _by_name(path: Path, size: int = 64) -> Imported:
    return import_model(NAME, image_size=size, checkpoint=path, depth=2, num_classes=7)


def test_safetensors(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    model, path = vit(), tmp_path / "tiny.safetensors"
    save_file(model.state_dict(), str(path))
    assert _same(_by_name(path), model)
    other = timm.create_model(NAME, depth=2, img_size=64, num_classes=7).eval()
    head = other.head.weight.clone()
    assert _same(import_model(other, checkpoint=path), model)
    assert torch.equal(other.head.weight, head), "the given module is left alone"


def test_pth_of_a_training_run_at_another_size(tmp_path: Path) -> None:
    from timm.layers import resample_abs_pos_embed

    model, path = vit(), tmp_path / "tiny.pth"
    torch.save({"epoch": 3, "state_dict": model.state_dict()}, path)
    imported = _by_name(path, size=96)
    resized = resample_abs_pos_embed(model.pos_embed, (6, 6), (4, 4), num_prefix_tokens=1)
    found = torch.from_numpy(imported.state["pos_embed"])
    assert relative_error(found, resized.detach()) < 1e-6
    assert np.array_equal(imported.state["head.weight"], model.head.weight.detach().numpy())


def google_npz(model: nn.Module) -> dict[str, np.ndarray]:
    """The model's weights under the names and in the layouts of Google's JAX checkpoints."""
    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    heads = model.blocks[0].attn.num_heads
    width = model.embed_dim
    found = {
        "cls": state["cls_token"],
        "embedding/kernel": state["patch_embed.proj.weight"].transpose(2, 3, 1, 0),
        "embedding/bias": state["patch_embed.proj.bias"],
        "Transformer/posembed_input/pos_embedding": state["pos_embed"],
        "Transformer/encoder_norm/scale": state["norm.weight"],
        "Transformer/encoder_norm/bias": state["norm.bias"],
        "head/kernel": state["head.weight"].T,
        "head/bias": state["head.bias"],
    }
    for i in range(len(model.blocks)):
        block, ours = f"Transformer/encoderblock_{i}/", f"blocks.{i}."
        attention = block + "MultiHeadDotProductAttention_1/"
        for part, name in enumerate(("query", "key", "value")):
            rows = slice(part * width, (part + 1) * width)
            kernel = state[ours + "attn.qkv.weight"][rows].T.reshape(width, heads, -1)
            found[f"{attention}{name}/kernel"] = kernel
            found[f"{attention}{name}/bias"] = state[ours + "attn.qkv.bias"][rows].reshape(
                heads, -1
            )
        found[attention + "out/kernel"] = state[ours + "attn.proj.weight"].T.reshape(
            heads, -1, width
        )
        found[attention + "out/bias"] = state[ours + "attn.proj.bias"]
        for j, layer in enumerate(("fc1", "fc2")):
            found[f"{block}MlpBlock_3/Dense_{j}/kernel"] = state[f"{ours}mlp.{layer}.weight"].T
            found[f"{block}MlpBlock_3/Dense_{j}/bias"] = state[f"{ours}mlp.{layer}.bias"]
        for norm, layer in ((0, "norm1"), (2, "norm2")):
            found[f"{block}LayerNorm_{norm}/scale"] = state[f"{ours}{layer}.weight"]
            found[f"{block}LayerNorm_{norm}/bias"] = state[f"{ours}{layer}.bias"]
    return found


def test_google_npz(tmp_path: Path) -> None:
    model, path = vit(), tmp_path / "tiny.npz"
    np.savez(path, **google_npz(model))
    imported = _by_name(path)
    assert _same(imported, model)
    photos = images(2, (3, 64, 64), seed=9)
    with torch.no_grad():
        wanted = model.double()(photos.double())
    assert relative_error(interpreted(imported, photos), wanted) <= EXACT


def test_checkpoints_that_do_not_fit(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="there is no checkpoint"):
        _by_name(tmp_path / "absent.safetensors")
    text = tmp_path / "weights.txt"
    text.write_text("no")
    with pytest.raises(WeightsError, match=r"none of \.safetensors"):
        _by_name(text)
    other = tmp_path / "other.pth"
    torch.save(vit("vit_small_patch16_224").state_dict(), other)
    with pytest.raises(WeightsError, match="could not get its weights"):
        _by_name(other)
    with pytest.raises(WeightsError, match="does not fit VisionTransformer"):
        import_model(vit(), checkpoint=other)
    broken = tmp_path / "broken.npz"
    broken.write_bytes(b"PK no archive")
    with pytest.raises(WeightsError, match=r"broken\.npz"):
        _by_name(broken)
