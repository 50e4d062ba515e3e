"""What a compiled model is compared with: timm in float64, and eager torch in some dtype."""

from __future__ import annotations

import copy
import math
from typing import Protocol, cast

import torch
from torch import Tensor, nn

from vitc.errors import VitcError

CHUNK = 8  # images that a reference run takes at once; bounds its memory


class _HasFeatures(Protocol):
    def forward_features(self, x: Tensor) -> Tensor: ...


def reference(
    model: nn.Module, images: Tensor, *, features: bool = False, chunk: int = CHUNK
) -> Tensor:
    """The model's result in float64, on a deep copy of it in eval mode, `chunk` images at a time.

    images: [B, C, H, W] of any float dtype, on any device. features: run `forward_features`.
    Returns float64 on the images' device. Raises VitcError when the result is not one tensor.
    """
    return eager(model, images, torch.float64, features=features, chunk=chunk)


def eager(
    model: nn.Module,
    images: Tensor,
    dtype: torch.dtype,
    *,
    features: bool = False,
    chunk: int = CHUNK,
) -> Tensor:
    """The result of eager torch with weights and images cast to `dtype`; see `reference`."""
    twin = copy.deepcopy(model).to(images.device, dtype).eval()
    with torch.inference_mode():
        starts = range(0, len(images), chunk)
        return torch.cat([_run(twin, images[i : i + chunk].to(dtype), features) for i in starts])


def _run(model: nn.Module, images: Tensor, features: bool) -> Tensor:
    result = cast(_HasFeatures, model).forward_features(images) if features else model(images)
    if not isinstance(result, Tensor):
        raise VitcError(
            f"{type(model).__name__} returns {type(result).__name__}, not one tensor",
            hint="wrap it in a module that returns the tensor to compare",
        )
    return result


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """L2 norm of the difference over that of `expected`, in float64; NaN counts as infinite."""
    wanted = expected.to(torch.float64)
    difference = actual.to(wanted.device, torch.float64) - wanted
    size, distance = _norm(wanted), _norm(difference)
    if size == 0.0 or math.isnan(distance) or math.isnan(size):
        return 0.0 if distance == 0.0 else float("inf")
    return distance / size


def _norm(tensor: Tensor) -> float:
    return math.sqrt(float(tensor.square().sum()))
