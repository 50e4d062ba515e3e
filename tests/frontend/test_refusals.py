"""What the frontend refuses: one error that names all of it, and the way out."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

import pytest
import timm
import torch
from frontend.support import IMAGE, Apply
from torch import Tensor, nn
from torch.export import Dim, export

from vitc.errors import UnsupportedModelError
from vitc.frontend import import_model
from vitc.frontend.aliases import Aliases
from vitc.ops.aten import Unsupported

SIZE = IMAGE[1:]


class Odd(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = Apply(lambda m, x: torch.cumsum(x, 1))
        self.other = Apply(lambda m, x: x.sort(-1).values)

    def forward(self, x: Tensor) -> Tensor:
        y = self.inner(x)
        return self.other(y) + torch.linalg.qr(y).R.sum((1, 2, 3), keepdim=True)


def test_all_unknown_operations_are_named_with_path_and_line() -> None:
    with pytest.raises(UnsupportedModelError) as caught:
        import_model(Odd().eval(), image_size=SIZE)
    found = {op.op: op for op in caught.value.ops}
    assert set(found) == {"cumsum.default", "sort.default", "linalg_qr.default"}
    assert found["cumsum.default"].module_path == "inner"
    assert found["sort.default"].module_path == "other"
    assert found["linalg_qr.default"].module_path == "the model itself"
    assert all(op.source.startswith(("test_refusals.py:", "support.py:")) for op in found.values())
    assert "cumsum.default in 'inner'" in str(caught.value)


REASONS = {
    "circular padding": lambda m, x: nn.functional.pad(x, (1, 1, 1, 1), mode="circular"),
    "padding with 2.0": lambda m, x: nn.functional.pad(x, (1, 1), value=2.0),
    "mask of bools": lambda m, x: nn.functional.scaled_dot_product_attention(
        x, x, x, attn_mask=torch.ones(12, 12, dtype=torch.bool)
    ),
    "not [B, heads, tokens, channels]": lambda m, x: nn.functional.scaled_dot_product_attention(
        x[:, 0], x[:, 0], x[:, 0]
    ),
    "with dilation": lambda m, x: nn.functional.max_pool2d(x, 2, dilation=2),
    "unequal windows": lambda m, x: nn.functional.adaptive_avg_pool2d(x, 7),
    "tensor padded with -inf": lambda m, x: nn.functional.pad(x, (1, 1), value=-torch.inf).exp(),
    "that vitc does not compute": lambda m, x: x.max(-1).indices * 1.0,
    "float64": lambda m, x: x.double().sum(1).float(),
    "order 1": lambda m, x: torch.linalg.vector_norm(x, 1, -1),
    "indexing by 2 tensors": lambda m, x: x[:, torch.tensor([0]), torch.tensor([1])],
}


@pytest.mark.parametrize("reason", REASONS)
def test_known_calls_with_arguments_that_are_not(reason: str) -> None:
    with pytest.raises(UnsupportedModelError, match=reason.replace("circular padding", "circular")):
        import_model(Apply(REASONS[reason]).eval(), image_size=SIZE)


def _write_to_a_view(m: nn.Module, x: Tensor) -> Tensor:
    y = x * 2
    first = y.flatten(1)
    y.relu_()
    return first


def _write_to_the_images(m: nn.Module, x: Tensor) -> Tensor:
    return x.relu_()


@pytest.mark.parametrize("read_again", [False, True])
def test_writes_behind_dropout(read_again: bool) -> None:
    """A graph as torch 2.9 exports it: in evaluation mode the result is the argument itself."""
    aten, graph = torch.ops.aten, torch.fx.Graph()
    doubled = graph.call_function(aten.mul.Tensor, (graph.placeholder("x"), 2))
    dropped = graph.call_function(aten.dropout.default, (doubled, 0.5, False))
    written = graph.call_function(aten.add_.Tensor, (dropped, 1))
    if read_again:
        graph.call_function(aten.mul.Tensor, (doubled, 2))
    refused = pytest.raises(Unsupported, match=f"memory that '{doubled.name}' shares")
    with refused if read_again else nullcontext():
        Aliases(list(graph.nodes)).check(written)


@pytest.mark.parametrize("function", [_write_to_a_view, _write_to_the_images])
def test_writing_to_memory_that_others_see(function: Callable[..., Tensor]) -> None:
    with pytest.raises(UnsupportedModelError, match=r"relu_\.default: writes to"):
        import_model(Apply(function).eval(), image_size=SIZE)


def _vit(**arguments: object) -> nn.Module:
    return timm.create_model("vit_tiny_patch16_224", depth=1, img_size=32, **arguments).eval()


def test_training_mode() -> None:
    model = _vit()
    model.blocks[0].train()
    with pytest.raises(UnsupportedModelError, match=r"training mode \(blocks.0\)(.|\n)*eval"):
        import_model(model)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_models_that_are_not_float32(dtype: torch.dtype) -> None:
    name = str(dtype).removeprefix("torch.")
    with pytest.raises(UnsupportedModelError, match=rf"cls_token.* is {name}, not float32"):
        import_model(_vit().to(dtype))


def test_models_without_elements() -> None:
    with pytest.raises(UnsupportedModelError, match="meta device"):
        import_model(_vit().to("meta"))


def test_quantized_modules() -> None:
    class Twisted(nn.Linear):
        __module__ = "torch.ao.nn.quantized.modules.linear"

    with pytest.raises(UnsupportedModelError, match="'0' of Sequential is a quantized module"):
        import_model(nn.Sequential(Twisted(10, 10)).eval(), image_size=SIZE)


def test_control_flow_that_depends_on_the_images() -> None:
    model = Apply(lambda m, x: x * 2 if x.sum() > 0 else x)
    with pytest.raises(UnsupportedModelError, match="cannot follow Apply"):
        import_model(model.eval(), image_size=SIZE)


def test_models_of_one_batch_size() -> None:
    model = Apply(lambda m, x: x.reshape(2, -1))
    with pytest.raises(UnsupportedModelError, match="cannot follow Apply"):
        import_model(model.eval(), image_size=SIZE)


def test_a_forward_of_several_inputs() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor, y: Tensor) -> Tensor:
            return x + y

    with pytest.raises(UnsupportedModelError, match="takes x, y"):
        import_model(Two().eval(), image_size=SIZE)


def test_results_that_are_not_tensors() -> None:
    model = Apply(lambda m, x: (x, 3))  # type: ignore[arg-type, return-value]
    with pytest.raises(UnsupportedModelError, match="output 1 of 'Apply' is not a tensor"):
        import_model(model.eval(), image_size=SIZE)


def test_image_sizes() -> None:
    with pytest.raises(UnsupportedModelError, match="pass image_size"):
        import_model(nn.Conv2d(3, 4, 3).eval())
    with pytest.raises(UnsupportedModelError, match="made for images of 32x32, not 48x64"):
        import_model(_vit(), image_size=(48, 64))


def test_unknown_names_come_with_suggestions() -> None:
    with pytest.raises(UnsupportedModelError, match=r"close names: .*vit_base_patch16_224"):
        import_model("vit_base_patch16_225")


def test_features_of_a_module_without_them() -> None:
    with pytest.raises(UnsupportedModelError, match="no forward_features"):
        import_model(nn.Conv2d(3, 4, 3).eval(), image_size=SIZE, features=True)


def _export(model: nn.Module, dynamic: Any) -> torch.export.ExportedProgram:
    return export(model, (torch.zeros(2, 3, 32, 32),), dynamic_shapes=dynamic)


def test_exported_programs() -> None:
    model = _vit()
    with pytest.raises(
        UnsupportedModelError, match=r"f32\[2,3,32,32\].*fixed(.|\n)*dynamic_shapes"
    ):
        import_model(_export(model, None))
    small = _export(model, ({0: Dim("batch", min=1, max=8)},))
    with pytest.raises(UnsupportedModelError, match="batches up to 8, not 32"):
        import_model(small, max_batch=32)
    with pytest.raises(UnsupportedModelError, match="has its image size"):
        import_model(small, image_size=32)
    conv = nn.Conv2d(3, 4, 3).eval()
    high = _export(conv, ({0: Dim("batch", min=1), 2: Dim("height", min=8)},))
    with pytest.raises(UnsupportedModelError, match="only the batch may be dynamic"):
        import_model(high)
    photos = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    relu = nn.ReLU().eval()
    doubled = export(relu, (photos,), dynamic_shapes=({0: Dim("batch", min=1)},))
    with pytest.raises(UnsupportedModelError, match=r"is f64\[B,3,8,8\], not float32"):
        import_model(doubled)
