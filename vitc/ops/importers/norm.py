"""Importers of normalisations: the norm itself, then its affine part as one `pointwise`."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from vitc.ir.builder import Value
from vitc.ops import GroupNorm, Norm, Pointwise, Step
from vitc.ops.aten import Context, aten, refuse, size_of


def _affine(b: Context, x: Value, scale: Value | None, shift: Value | None) -> Value:
    """x * scale + shift, whichever are there."""
    operands = [value for value in (scale, shift) if value is not None]
    kinds = [kind for kind, value in (("mul", scale), ("add", shift)) if value is not None]
    if not operands:
        return x
    steps = tuple(Step(kind, i + 1) for i, kind in enumerate(kinds))
    return b.emit(Pointwise(steps), x, *operands)


def _last_axes(
    b: Context,
    norm: Norm,
    x: Value,
    normalized: Sequence[int],
    weight: Value | None,
    bias: Value | None,
) -> Value:
    """Normalises the last len(normalized) axes, which are merged for it."""
    flat = len(normalized) == 1
    lead = x.shape[: len(x.shape) - len(normalized)]
    with b.part("norm"):
        merged = x if flat else b.reshape(x, (*lead, prod(normalized)))
        result = b.emit(norm, merged)
        result = result if flat else b.reshape(result, x.shape)
    return _affine(b, result, weight, bias)


@aten("layer_norm.default")
def layer_norm(
    b: Context,
    x: Value,
    normalized: Sequence[int],
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enable: bool = True,
) -> Value:
    return _last_axes(b, Norm(kind="layer", eps=eps), x, normalized, weight, bias)


@aten("rms_norm.default")
def rms_norm(
    b: Context,
    x: Value,
    normalized: Sequence[int],
    weight: Value | None = None,
    eps: float | None = None,
) -> Value:
    if eps is None:  # torch's default: the machine epsilon of the input's dtype
        eps = float(np.finfo(np.float32).eps)
    return _last_axes(b, Norm(kind="rms", eps=eps), x, normalized, weight, None)


@aten("group_norm.default")
def group_norm(
    b: Context,
    x: Value,
    groups: int,
    weight: Value | None = None,
    bias: Value | None = None,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    last = b.channels_last(x)
    with b.part("norm"):
        result = b.emit(GroupNorm(groups=groups, eps=eps), last)
    return b.channels_first(_affine(b, result, weight, bias))


@aten("batch_norm.default")
def batch_norm(
    b: Context,
    x: Value,
    weight: Value | None,
    bias: Value | None,
    mean: Value | None,
    variance: Value | None,
    training: bool,
    momentum: float = 0.1,
    eps: float = 1e-5,
    cudnn_enabled: bool = True,
) -> Value:
    """x * s + t over channels, with s = weight / sqrt(variance + eps) and t = bias - mean * s."""
    if training or mean is None or variance is None:
        return _standardise(b, x, weight, bias, eps)
    with b.part("scale"):
        scale = b.unary(variance, Step("shift", None, (eps,)), "rsqrt")
        if weight is not None:
            scale = b.binary("mul", scale, weight)
    with b.part("shift"):
        shift = b.unary(b.binary("mul", mean, scale), "neg")
        if bias is not None:
            shift = b.binary("add", shift, bias)
    if len(x.shape) == 2:
        return _affine(b, x, scale, shift)
    return b.channels_first(_affine(b, b.channels_last(x), scale, shift))


def _standardise(
    b: Context, x: Value, weight: Value | None, bias: Value | None, eps: float
) -> Value:
    """Normalises x [1, C, ...] over all but C: how convolution weights are standardised."""
    refuse(x.shape[0] != 1 or x.type.batched, "batch norm in training mode")
    channels = size_of(x.shape[1], "channels")
    rest = prod(size_of(dim, "normalised axis") for dim in x.shape[2:])
    with b.part("affine"):
        scale = None if weight is None else b.reshape(weight, (channels, 1))
        shift = None if bias is None else b.reshape(bias, (channels, 1))
    with b.part("norm"):
        result = b.emit(Norm(kind="layer", eps=eps), b.reshape(x, (1, channels, rest)))
    return b.reshape(_affine(b, result, scale, shift), x.shape)
