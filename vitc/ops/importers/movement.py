"""Importers of calls that only move elements, or do nothing in evaluation mode."""

from __future__ import annotations

import math
from collections.abc import Sequence

from vitc.ir.builder import Value
from vitc.ir.index_map import Pad, Reshape, Roll, Slice, View
from vitc.ir.types import Dim
from vitc.ops import Gather
from vitc.ops.aten import Context, Filled, Unsupported, aten, axis_of, refuse, size_of

Index = Value | None


@aten(
    "alias.default",
    "clone.default",
    "contiguous.default",
    "detach.default",
    "detach_.default",
    "lift_fresh_copy.default",
)
def same(b: Context, x: Value, **_: object) -> Value:
    """Calls about memory, not about values."""
    return x


@aten("dropout.default", "dropout_.default", "feature_dropout.default", "alpha_dropout.default")
def dropout(b: Context, x: Value, p: float, train: bool) -> Value:
    refuse(train and p > 0, "dropout in training mode")
    return x


@aten("native_dropout.default")
def native_dropout(b: Context, x: Value, p: float, train: bool | None) -> tuple[Value, None]:
    return dropout(b, x, p, bool(train)), None


@aten(
    "reshape.default",
    "view.default",
    "_unsafe_view.default",
    "reshape_as.default",
    "view_as.default",
    "flatten.using_ints",
    "unflatten.int",
    "unsqueeze.default",
    "squeeze.default",
    "squeeze.dim",
    "squeeze.dims",
)
def reshape(b: Context, x: Value, *_: object) -> Value:
    """A reshape is determined by the shape that it results in."""
    return b.reshape(x, b.shape)


@aten("expand.default", "expand_as.default", "broadcast_to.default")
def expand(b: Context, x: Value, *_: object, implicit: bool = False) -> Value:
    return b.expand(x, b.shape)


@aten("permute.default")
def permute(b: Context, x: Value, axes: Sequence[int]) -> Value:
    return b.permute(x, axes)


@aten("transpose.int", "swapaxes.default", "swapdims.default")
def transpose(b: Context, x: Value, first: int, second: int) -> Value:
    axes = list(range(len(x.shape)))
    axes[first], axes[second] = axes[second], axes[first]
    return b.permute(x, axes)


@aten("t.default", "numpy_T.default", "mT.default")
def last_two(b: Context, x: Value) -> Value:
    return transpose(b, x, -1, -2) if len(x.shape) > 1 else x


def _rows(b: Context, x: Value, axis: int, index: int) -> Value:
    """Element `index` of one axis, without that axis."""
    rest = (*x.shape[:axis], *x.shape[axis + 1 :])
    return b.view(x, Slice(axis, index, index + 1), Reshape(rest))


@aten("select.int")
def select(b: Context, x: Value, axis: int, index: int) -> Value:
    axis = axis_of(axis, len(x.shape))
    size = size_of(x.shape[axis], "selected axis")
    return _rows(b, x, axis, axis_of(index, size))


@aten("unbind.int")
def unbind(b: Context, x: Value, axis: int = 0) -> list[Value]:
    axis = axis_of(axis, len(x.shape))
    size = size_of(x.shape[axis], "unbound axis")
    return [_rows(b, x, axis, index) for index in range(size)]


def _clamp(index: int, size: int) -> int:
    return min(max(index + size if index < 0 else index, 0), size)


@aten("slice.Tensor")
def slice_axis(
    b: Context,
    x: Value,
    axis: int = 0,
    start: int | None = None,
    end: Dim | None = None,
    step: int = 1,
) -> Value:
    axis = axis_of(axis, len(x.shape))
    dim = x.shape[axis]
    if b.shape == x.shape:  # the whole axis, also that of the batch
        return x
    size = size_of(dim, "sliced axis")
    stop = size if end is None else _clamp(size_of(end, "end of a slice"), size)
    return b.slice(x, axis, _clamp(start or 0, size), stop, step)


@aten("narrow.default")
def narrow(b: Context, x: Value, axis: int, start: int, length: int) -> Value:
    return slice_axis(b, x, axis, start, start + length)


@aten("split_with_sizes.default", "split.sizes")
def split_with_sizes(b: Context, x: Value, sizes: Sequence[int], axis: int = 0) -> list[Value]:
    starts = [sum(sizes[:i]) for i in range(len(sizes))]
    return [b.slice(x, axis, at, at + size) for at, size in zip(starts, sizes, strict=True)]


@aten("split.Tensor")
def split(b: Context, x: Value, size: int, axis: int = 0) -> list[Value]:
    total = size_of(x.shape[axis], "split axis")
    starts = range(0, total, size)
    return [b.slice(x, axis, start, min(start + size, total)) for start in starts]


@aten("chunk.default")
def chunk(b: Context, x: Value, count: int, axis: int = 0) -> list[Value]:
    total = size_of(x.shape[axis], "chunked axis")
    return split(b, x, -(-total // count), axis)


@aten("cat.default", "concat.default")
def cat(b: Context, parts: Sequence[Value], axis: int = 0) -> Value:
    return b.concat(parts, axis)


@aten("stack.default")
def stack(b: Context, parts: Sequence[Value], axis: int = 0) -> Value:
    axis = axis_of(axis, len(b.shape))
    one = (*b.shape[:axis], 1, *b.shape[axis + 1 :])
    with b.part("part"):
        parts = [b.reshape(part, one) for part in parts]
    return b.concat(parts, axis)


@aten("repeat.default")
def repeat(b: Context, x: Value, counts: Sequence[Dim]) -> Value:
    """Tiles x: [r * d] is [r, d] broadcast over r and merged."""
    new = len(counts) - len(x.shape)
    apart: list[Dim] = []
    tiled: list[Dim] = []
    for dim, count in zip((1,) * new + x.shape, counts, strict=True):
        apart += [1, dim]
        tiled += [count, dim]
    with b.part("tiles"):
        spread = b.expand(b.reshape(x, apart), tiled)
    return b.reshape(spread, b.shape)


@aten("roll.default")
def roll(b: Context, x: Value, shifts: Sequence[int], axes: Sequence[int] = ()) -> Value:
    refuse(not axes, "roll of the flattened tensor")
    views: list[View] = [
        Roll(axis_of(axis, len(x.shape)), shift) for shift, axis in zip(shifts, axes, strict=True)
    ]
    return b.view(x, *views)


def _axis_pads(rank: int, pads: Sequence[int]) -> list[tuple[int, int, int]]:
    """(axis, before, after) for each padded axis; torch lists the last axis first."""
    pairs = zip(range(rank - 1, -1, -1), pads[0::2], pads[1::2], strict=False)
    return [(axis, before, after) for axis, before, after in pairs if before or after]


@aten("pad.default", "constant_pad_nd.default")
def pad(
    b: Context,
    x: Value,
    pads: Sequence[int],
    mode: str | float = "constant",
    value: float | None = None,
) -> Value | Filled:
    """Zeros around x; negative amounts crop. Another value is left to the pooling that follows."""
    if not isinstance(mode, str):  # constant_pad_nd has no mode
        mode, value = "constant", mode
    refuse(mode != "constant", f"padding mode '{mode}'")
    amounts = _axis_pads(len(x.shape), pads)
    if not amounts:
        return x
    if value:
        return _filled(x, amounts, value)
    for axis, before, after in amounts:
        if before < 0 or after < 0:
            size = size_of(x.shape[axis], "cropped axis")
            x = b.slice(x, axis, max(-before, 0), size - max(-after, 0))
    views = [Pad(axis, max(low, 0), max(high, 0)) for axis, low, high in amounts]
    return b.view(x, *(view for view in views if view.before or view.after))


def _filled(x: Value, amounts: Sequence[tuple[int, int, int]], value: float) -> Filled:
    by_axis = {axis: (before, after) for axis, before, after in amounts}
    height, width = by_axis.pop(2, (0, 0)), by_axis.pop(3, (0, 0))
    spatial = len(x.shape) == 4 and not by_axis and min(*height, *width) >= 0
    if not spatial or value != -math.inf:
        raise Unsupported(f"padding with {value}")
    return Filled(x, (*height, *width), value)


@aten("index.Tensor")
def index(b: Context, x: Value, indices: Sequence[Index]) -> Value:
    """x[:, :, i] with one index tensor."""
    given = [(axis, value) for axis, value in enumerate(indices) if value is not None]
    refuse(len(given) != 1, f"indexing by {len(given)} tensors")
    return index_select(b, x, *given[0])


@aten("index_select.default")
def index_select(b: Context, x: Value, axis: int, index: Value) -> Value:
    return b.emit(Gather(axis_of(axis, len(x.shape))), x, index)


@aten("embedding.default")
def embedding(b: Context, table: Value, index: Value, *_: object) -> Value:
    return b.emit(Gather(0), table, index)
