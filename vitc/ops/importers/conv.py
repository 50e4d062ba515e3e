"""Importers of convolutions and pooling: channels-last ops between permutations."""

from __future__ import annotations

from collections.abc import Sequence

from vitc.ir.builder import Value
from vitc.ir.types import Dim
from vitc.ops import Conv2d, Pool2d, Reduce, Step
from vitc.ops.aten import Context, Filled, aten, pair, refuse, size_of
from vitc.ops.conv import Padding

Sizes = int | Sequence[int]


@aten("conv2d.default", "conv2d.padding")
def conv2d(
    b: Context,
    x: Value,
    weight: Value,
    bias: Value | None = None,
    stride: Sizes = 1,
    padding: Sizes | str = 0,
    dilation: Sizes = 1,
    groups: int = 1,
) -> Value:
    with b.part("weight"):
        last = b.permute(weight, (0, 2, 3, 1))
    steps = () if bias is None else (Step("add", 2),)
    pads = _conv_padding(padding, weight, pair(dilation))
    conv = Conv2d(steps, stride=pair(stride), padding=pads, dilation=pair(dilation), groups=groups)
    operands = () if bias is None else (bias,)
    return b.channels_first(b.emit(conv, b.channels_last(x), last, *operands))


@aten("convolution.default")
def convolution(
    b: Context,
    x: Value,
    weight: Value,
    bias: Value | None,
    stride: Sizes,
    padding: Sizes,
    dilation: Sizes,
    transposed: bool,
    output_padding: Sizes,
    groups: int,
) -> Value:
    refuse(transposed or len(x.shape) != 4, "transposed or not two-dimensional convolution")
    return conv2d(b, x, weight, bias, stride, padding, dilation, groups)


def _conv_padding(padding: Sizes | str, weight: Value, dilation: tuple[int, int]) -> Padding:
    """(top, bottom, left, right). "same" puts the odd zero behind, as torch does."""
    if not isinstance(padding, str):
        height, width = pair(padding)
        return (height, height, width, width)
    if padding == "valid":
        return (0, 0, 0, 0)
    kernel = [size_of(dim, "kernel") for dim in weight.shape[2:]]
    totals = [d * (k - 1) for d, k in zip(dilation, kernel, strict=True)]
    top, left = totals[0] // 2, totals[1] // 2
    return (top, totals[0] - top, left, totals[1] - left)


@aten("max_pool2d.default")
def max_pool2d(
    b: Context,
    x: Value | Filled,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    dilation: Sizes = 1,
    ceil_mode: bool = False,
) -> Value:
    refuse(pair(dilation) != (1, 1), "pooling with dilation")
    around = _pool_padding(padding)
    if isinstance(x, Filled):  # minus infinity around x is what a maximum ignores
        refuse(any(around), "padding of a padded tensor")
        around, x = x.pads, x.x
    return _pool(b, x, Pool2d(kind="max"), kernel, stride, around, ceil_mode)


@aten("avg_pool2d.default")
def avg_pool2d(
    b: Context,
    x: Value,
    kernel: Sizes,
    stride: Sizes = (),
    padding: Sizes = 0,
    ceil_mode: bool = False,
    count_include_pad: bool = True,
    divisor_override: int | None = None,
) -> Value:
    refuse(divisor_override is not None, "pooling with a divisor of its own")
    pool = Pool2d(kind="avg", count_padding=count_include_pad)
    return _pool(b, x, pool, kernel, stride, _pool_padding(padding), ceil_mode)


def _pool_padding(padding: Sizes) -> Padding:
    height, width = pair(padding)
    return (height, height, width, width)


def _pool(
    b: Context,
    x: Value,
    pool: Pool2d,
    kernel: Sizes,
    stride: Sizes,
    padding: Padding,
    ceil_mode: bool,
) -> Value:
    size = pair(kernel)
    step = size if isinstance(stride, Sequence) and not stride else pair(stride)
    if ceil_mode:
        top, bottom, left, right = padding
        more_h = _ceil_extra(x.shape[2], size[0], step[0], top + bottom, b.shape[2])
        more_w = _ceil_extra(x.shape[3], size[1], step[1], left + right, b.shape[3])
        counts = pool.kind == "avg" and pool.count_padding and (more_h or more_w)
        refuse(bool(counts), "average that counts padding, with ceil_mode")
        padding = (top, bottom + more_h, left, right + more_w)
    done = Pool2d(
        kind=pool.kind,
        kernel=size,
        stride=step,
        padding=padding,
        count_padding=pool.count_padding,
    )
    return b.channels_first(b.emit(done, b.channels_last(x)))


def _ceil_extra(size: Dim, kernel: int, stride: int, padding: int, windows: Dim) -> int:
    """Padding behind the last pixel for all windows that torch's rounding up gives."""
    span = (size_of(windows, "pooled axis") - 1) * stride + kernel
    return max(span - size_of(size, "pooled axis") - padding, 0)


@aten("adaptive_avg_pool2d.default")
def adaptive_pool2d(b: Context, x: Value, size: Sizes) -> Value:
    """Pooling down to one pixel, or into equal windows."""
    wanted = pair(size)
    have = [size_of(dim, "pooled axis") for dim in x.shape[2:]]
    if wanted == (1, 1):
        return b.emit(Reduce(kind="mean", axes=(2, 3), keepdims=True), x)
    refuse(any(h % w for h, w in zip(have, wanted, strict=True)), "pooling into unequal windows")
    window = (have[0] // wanted[0], have[1] // wanted[1])
    return _pool(b, x, Pool2d(kind="avg"), window, window, (0, 0, 0, 0), False)
