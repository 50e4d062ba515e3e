"""Every importer, by a module that makes the call: graph and module agree in float64."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from frontend.support import IMAGE, Apply, agree
from torch import Tensor, nn

from vitc.frontend import import_model

MATRIX = torch.zeros(10, 10)

MOVES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "view": lambda m, x: x.view(x.shape[0], -1, 5),
    "flatten": lambda m, x: x.flatten(1, 2),
    "unflatten": lambda m, x: x.unflatten(2, (4, 3)),
    "squeeze": lambda m, x: x[:, :1].squeeze(1).unsqueeze(-1).squeeze(),
    "reshape_merges_batch": lambda m, x: x.reshape(-1, 10).reshape_as(x),
    "permute": lambda m, x: x.permute(0, -1, 1, 2),
    "transpose": lambda m, x: x.transpose(-1, 1),
    "transposed": lambda m, x: x.mT,
    "batch_inside": lambda m, x: x.permute(1, 0, 2, 3).unbind(0)[2],
    "select": lambda m, x: x[:, -1],
    "slice": lambda m, x: x[:, :, 1:-2:3],
    "slice_past_the_end": lambda m, x: x[:, :, 7:99],
    "narrow": lambda m, x: x.narrow(2, 3, 4),
    "split": lambda m, x: x.split(5, dim=2)[2],
    "split_with_sizes": lambda m, x: x.split([2, 7, 3], dim=2)[1],
    "chunk": lambda m, x: x.chunk(5, dim=2)[3],
    "unbind": lambda m, x: x.unbind(3)[4],
    "cat": lambda m, x: torch.cat([x, x[:, :1] * 2], 1),
    "stack": lambda m, x: torch.stack([x, x + 1], -1),
    "repeat": lambda m, x: x.repeat(1, 2, 1, 3),
    "repeat_new_axis": lambda m, x: x.repeat(1, 1, 2, 1, 1).reshape(-1, 20),
    "expand": lambda m, x: x[:, :1].expand(-1, 4, -1, -1),
    "roll": lambda m, x: x.roll((2, -3), (2, 3)),
    "pad": lambda m, x: F.pad(x, (1, 2, 3, 0)),
    "pad_crops": lambda m, x: F.pad(x, (-1, 2, 0, -3)),
    "pad_channels": lambda m, x: F.pad(x, (0, 0, 0, 0, 2, 1)),
    "index": lambda m, x: x[:, :, torch.tensor([3, 3, 0])],
    "index_table": lambda m, x: x + m.w[torch.tensor([[0, 5], [9, 2], [1, 1]]).reshape(-1)][:1],
    "index_select": lambda m, x: x.index_select(3, torch.tensor([1, 0])),
    "embedding": lambda m, x: x + F.embedding(torch.arange(10), m.w)[0],
    "computed_table": lambda m, x: x + m.w[torch.arange(20).reshape(2, 10)[0] % 7 + 1][:1],
    "computed_mask": lambda m, x: x + torch.arange(10).lt(4).to(x.dtype) * 3,
    "nothing": lambda m, x: F.dropout(x.clone().contiguous().detach(), 0.5, False).float(),
}
ARITHMETIC: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "add": lambda m, x: torch.add(x, m.w[0], alpha=0.5),
    "add_number": lambda m, x: 2 + x,
    "sub": lambda m, x: torch.sub(m.w[0], x, alpha=3),
    "sub_number": lambda m, x: x - 1.5,
    "rsub": lambda m, x: 1.5 - x,
    "mul": lambda m, x: x * m.w[1] * 0.3,
    "div": lambda m, x: x / (m.w[0].exp() + 1) / 7,
    "pow": lambda m, x: x.pow(2) + x.abs().pow(1.5),
    "clamp": lambda m, x: x.clamp(-0.5, 0.7) + x.clamp(min=0.1) + x.clamp_max(0.3),
    "minimum": lambda m, x: torch.minimum(x, m.w[0]) + torch.maximum(x, m.w[1]),
    "gelus": lambda m, x: F.gelu(x) + F.gelu(x, approximate="tanh"),
    "gates": lambda m, x: F.silu(x) * x.sigmoid() + x.tanh(),
    "hard": lambda m, x: F.hardswish(x * 3) + F.hardsigmoid(x) + F.relu6(9 * x),
    "roots": lambda m, x: x.square().sqrt() + (x.abs() + 1).rsqrt() + (x.exp() + 1).reciprocal(),
    "waves": lambda m, x: x.sin() + x.cos() - (x.abs() + 1).log(),
    "in_place": lambda m, x: F.relu(x + 1, inplace=True).add_(m.w[0]),
    "in_place_then_read_again": lambda m, x: _read_again(x * 2),
    "in_place_behind_dropout": lambda m, x: _write_behind_dropout(x * 2),
    "cast": lambda m, x: x.to(torch.float32).type_as(m.w),
}


def _write_behind_dropout(y: Tensor) -> Tensor:
    z = F.dropout(y, 0.5, training=False)  # y itself
    z += 1
    return y * 2 + z


def _read_again(y: Tensor) -> Tensor:
    y.relu_()
    return y * 3


REDUCTIONS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "mean": lambda m, x: x.mean((2, 3)),
    "sum_keeps": lambda m, x: x.sum(-1, keepdim=True),
    "amax": lambda m, x: x.amax((1, 2)),
    "max": lambda m, x: x.max(2).values,
    "norm": lambda m, x: F.normalize(x, dim=1),
    "softmax": lambda m, x: x.softmax(-1),
    "softmax_inside": lambda m, x: x.softmax(1),
}
PRODUCTS: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    "linear": lambda m, x: F.linear(x, m.w, m.w[0]),
    "matmul": lambda m, x: (x @ m.w) @ x.transpose(-1, -2),
    "bmm": lambda m, x: torch.bmm(x[:, 0], x[:, 1].mT),
    "addmm": lambda m, x: torch.addmm(m.w[0], x[:, 0, 0], m.w),
    "attention": lambda m, x: F.scaled_dot_product_attention(x, x + 1, x * 2),
    "attention_scaled": lambda m, x: F.scaled_dot_product_attention(x, x, x, scale=0.1),
    "attention_biased": lambda m, x: F.scaled_dot_product_attention(
        x[:, :, :10], x[:, :, 2:], x[:, :, 2:], attn_mask=m.w
    ),
    "attention_causal": lambda m, x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
}
RESIZES: dict[str, Callable[[nn.Module, Tensor], Tensor]] = {
    f"{mode}{'_aa' if antialias else ''}{'_aligned' if corners else ''}": (
        lambda m, x, mode=mode, antialias=antialias, corners=corners: F.interpolate(
            x, (7, 15), mode=mode, antialias=antialias, align_corners=corners
        )
    )
    for mode in ("bilinear", "bicubic")
    for antialias, corners in ((False, False), (True, False), (False, True))
}
CALLS = {**MOVES, **ARITHMETIC, **REDUCTIONS, **PRODUCTS, **RESIZES}


@pytest.mark.parametrize("name", CALLS)
def test_call(name: str) -> None:
    agree(Apply(CALLS[name], w=MATRIX.clone()))


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "conv": lambda: nn.Conv2d(3, 8, (3, 2), stride=(2, 1), padding=(1, 0), dilation=(1, 2)),
    "conv_groups": lambda: nn.Conv2d(3, 6, 3, groups=3, bias=False),
    "conv_same": lambda: nn.Conv2d(3, 4, (4, 3), padding="same", dilation=(1, 2)),
    "conv_valid": lambda: nn.Conv2d(3, 4, 3, padding="valid"),
    "max_pool": lambda: nn.MaxPool2d(3, 2, 1),
    "max_pool_ceil": lambda: nn.MaxPool2d(3, 2, ceil_mode=True),
    "max_pool_own_stride": lambda: nn.MaxPool2d(2),
    "avg_pool": lambda: nn.AvgPool2d((3, 2), 2, (1, 0)),
    "avg_pool_inside": lambda: nn.AvgPool2d(3, 2, 1, count_include_pad=False),
    "avg_pool_ceil": lambda: nn.AvgPool2d(3, 2, ceil_mode=True, count_include_pad=False),
    "avg_pool_ceil_fits": lambda: nn.AvgPool2d(2, 2, ceil_mode=True),
    "global_pool": lambda: nn.AdaptiveAvgPool2d(1),
    "pool_to_size": lambda: nn.AdaptiveAvgPool2d((4, 5)),
    "batch_norm": lambda: nn.BatchNorm2d(3),
    "batch_norm_plain": lambda: nn.BatchNorm2d(3, affine=False),
    "batch_norm_rows": lambda: nn.Sequential(nn.Flatten(0, 2), nn.BatchNorm1d(10)),
    "group_norm": lambda: nn.Sequential(nn.Conv2d(3, 8, 1), nn.GroupNorm(4, 8)),
    "layer_norm": lambda: nn.LayerNorm(10, eps=1e-3),
    "layer_norm_two_axes": lambda: nn.LayerNorm((12, 10)),
    "layer_norm_plain": lambda: nn.LayerNorm(10, elementwise_affine=False),
    "rms_norm": lambda: nn.RMSNorm(10, eps=1e-5),
}


@pytest.mark.parametrize("name", LAYERS)
def test_layer(name: str) -> None:
    agree(LAYERS[name]())


def test_maximum_over_padding_with_minus_infinity() -> None:
    agree(Apply(lambda m, x: F.max_pool2d(F.pad(x, (0, 1, 1, 0), value=-torch.inf), 3, 2)))


def test_standardised_convolution_is_a_constant() -> None:
    from timm.layers import ScaledStdConv2dSame, StdConv2dSame

    for layer in (StdConv2dSame(3, 8, 3, stride=2), ScaledStdConv2dSame(3, 8, 3)):
        graph = agree(layer).graph
        norms = [node for node in graph.nodes if node.op.name == "norm"]
        assert norms
        assert all(node.output in graph.constants for node in norms)


def test_rms_norm_without_eps_takes_that_of_float32() -> None:
    graph = agree(nn.RMSNorm(10, eps=float(torch.finfo(torch.float32).eps))).graph
    again = Apply(lambda m, x: F.rms_norm(x, (10,), m.weight), weight=torch.ones(10))
    other = import_model(again.eval(), image_size=IMAGE[1:]).graph
    assert [node.op for node in other.nodes] == [node.op for node in graph.nodes]
