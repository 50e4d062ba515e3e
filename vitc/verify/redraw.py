"""Weights and images that let a mistake show.

timm initialises biases with zeros, norms with ones, LayerScale with 1e-5 and so on: a compiler
that forgot one of them would still agree. Here every parameter is drawn so that it matters.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

Draw = Callable[[torch.Size, torch.Generator], Tensor]

# Mean and deviation of a normalised ImageNet pixel stay near 0 and 1; black and white lie here.
_DARKEST, _BRIGHTEST = -2.1, 2.6


def _normal(deviation: float, mean: float = 0.0) -> Draw:
    return lambda shape, rng: mean + deviation * torch.randn(shape, generator=rng)


def _uniform(low: float, high: float) -> Draw:
    return lambda shape, rng: low + (high - low) * torch.rand(shape, generator=rng)


def _matrix(shape: torch.Size, rng: torch.Generator) -> Tensor:
    """Variance 1 / fan-in: what goes in with variance one comes out with variance one."""
    return torch.randn(shape, generator=rng) / math.sqrt(max(1, math.prod(shape[1:])))


# The first pattern that is found in the tensor's full name decides; the rest follows from the rank.
_BY_NAME: tuple[tuple[str, Draw], ...] = (
    (r"running_mean$", _normal(0.15)),
    (r"running_var$", _uniform(1.0, 2.0)),  # above one: residual streams without LayerNorm grow
    (r"logit_scale$", _uniform(math.log(5.0), math.log(20.0))),
    (r"lambda_\w+$", _normal(0.2)),
    (r"(gamma\w*|gain|layer_scale\w*)$", _uniform(0.5, 1.5)),
    (r"(bias_table|attention_biases|rel_pos\w*)$", _normal(0.7)),
    (r"(pos_embed\w*|token|latent|probe|query)$", _normal(0.7)),
    (r"bias$", _normal(0.15)),
)
_VECTOR = _uniform(0.7, 1.3)  # weights of norms


def redraw(model: nn.Module, seed: int = 0) -> None:
    """Draws every parameter and every float buffer of the state dict anew, in place.

    Activations stay O(1) through the depth. Buffers outside the state dict (coordinate tables,
    masks) are part of the architecture and stay. The same model and seed give the same values, on
    any device and in any dtype up to its rounding.
    """
    rng = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, tensor in _float_state(model):
            drawn = _draw_for(name, tensor)(tensor.shape, rng)
            tensor.copy_(drawn.to(tensor.device, tensor.dtype))


def _float_state(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Parameters and float buffers of the state dict; a shared tensor comes once."""
    saved = model.state_dict(keep_vars=True)
    seen = set[int]()
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and name in saved and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def _draw_for(name: str, tensor: Tensor) -> Draw:
    for pattern, draw in _BY_NAME:
        if re.search(pattern, name):
            return draw
    return _matrix if tensor.ndim >= 2 else _VECTOR


def images(batch: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """`batch` different images as they come out of timm's transforms: float32 [batch, C, H, W].

    Smooth shapes and a little noise, about zero mean and unit deviation, within the range that
    normalised ImageNet pixels have. Image i depends on `seed` and i alone, not on `batch`.
    """
    return torch.stack([_image(shape, seed, index) for index in range(batch)])


def _image(shape: tuple[int, int, int], seed: int, index: int) -> Tensor:
    rng = torch.Generator().manual_seed(seed * 1_000_003 + index)
    channels, height, width = shape
    coarse = torch.randn(1, channels, 6, 6, generator=rng)
    smooth = nn.functional.interpolate(coarse, (height, width), mode="bicubic", align_corners=False)
    picture = 0.9 * smooth[0] + 0.3 * torch.randn(shape, generator=rng)
    brightness = 0.6 * torch.randn(channels, 1, 1, generator=rng)
    return (picture + brightness).clamp(_DARKEST, _BRIGHTEST)
