"""Which part of a tensor is read: a span per axis, and how spans travel back through views."""

from __future__ import annotations

from collections.abc import Sequence

from vitc.ir.index_map import Expand, IndexMap, Pad, Permute, Reshape, Roll, Slice, View
from vitc.ir.types import Batch, Dim, Shape, multiply

Span = tuple[int, int] | None  # [start, stop) of one axis; None is all of it
Spans = tuple[Span, ...]


def everything(shape: Shape) -> Spans:
    """All of a tensor."""
    return (None,) * len(shape)


def hull(a: Spans, b: Spans) -> Spans:
    """The smallest spans that hold both."""
    return tuple(
        None if x is None or y is None else (min(x[0], y[0]), max(x[1], y[1]))
        for x, y in zip(a, b, strict=True)
    )


def normal(spans: Sequence[Span], shape: Shape) -> Spans:
    """The spans with None where they are the whole axis."""
    return tuple(
        None if isinstance(dim, Batch) or span == (0, dim) else span
        for span, dim in zip(spans, shape, strict=True)
    )


def size_of(span: Span, dim: Dim) -> Dim:
    """How much of an axis of size `dim` the span holds."""
    return dim if span is None else span[1] - span[0]


def trimmed(shape: Shape, spans: Spans) -> Shape:
    """The shape of that part of a tensor."""
    return tuple(size_of(span, dim) for span, dim in zip(spans, shape, strict=True))


def aligned(spans: Spans, shape: Shape) -> Spans:
    """Spans of an operand of `shape` that broadcasts to a tensor of which `spans` are wanted."""
    last = spans[len(spans) - len(shape) :] if shape else ()
    return tuple(None if dim == 1 else span for span, dim in zip(last, shape, strict=True))


def slices(have: Spans, want: Spans, shape: Shape) -> list[View]:
    """Views that cut a tensor, of which `have` is there, down to `want`."""
    views: list[View] = []
    for axis, (held, wanted) in enumerate(zip(have, want, strict=True)):
        if wanted is not None and wanted != held:
            base = held[0] if held is not None else 0
            views.append(Slice(axis, wanted[0] - base, wanted[1] - base))
    return views


def through_map(index_map: IndexMap, wanted: Spans) -> tuple[Spans, IndexMap]:
    """(spans of the source, the map from that part of the source to `wanted` of the result)."""
    shapes = [index_map.shape]
    for view in index_map.views:
        shapes.append(view.infer(shapes[-1]))
    steps: list[tuple[View, Spans, Spans, Spans]] = []
    spans = wanted
    for view, shape, after in zip(
        reversed(index_map.views), reversed(shapes[:-1]), reversed(shapes[1:]), strict=True
    ):
        before, got = _back(view, shape, after, spans)
        before, got = normal(before, shape), normal(got, after)
        steps.append((_cut(view, shape, after, before, got), before, got, spans))
        spans = before
    views: list[View] = []
    for (view, _, got, wanted_after), after in zip(reversed(steps), shapes[1:], strict=True):
        views += [view, *slices(got, wanted_after, after)]
    return spans, IndexMap(trimmed(index_map.shape, spans), tuple(views))


def _back(view: View, shape: Shape, after: Shape, wanted: Spans) -> tuple[list[Span], list[Span]]:
    """(what the view must read, what it then makes): the latter holds `wanted`."""
    before, got = list(wanted), list(wanted)
    if isinstance(view, Slice):
        dim = after[view.axis]
        assert not isinstance(dim, Batch)
        first, stop = wanted[view.axis] or (0, dim)
        before[view.axis] = (
            view.start + first * view.step,
            view.start + (stop - 1) * view.step + 1,
        )
    elif isinstance(view, Permute):
        for i, axis in enumerate(view.axes):
            before[axis] = wanted[i]
    elif isinstance(view, Pad):
        dim, span = shape[view.axis], wanted[view.axis]
        assert not isinstance(dim, Batch)
        inside = span and (max(span[0] - view.before, 0), min(span[1] - view.before, dim))
        if inside is None or inside[0] >= inside[1]:
            before[view.axis] = got[view.axis] = None
        else:
            before[view.axis] = inside
    elif isinstance(view, Roll):
        before[view.axis] = got[view.axis] = None
    elif isinstance(view, Expand):
        before = list(aligned(wanted, shape))
    else:
        before, got = list(everything(shape)), list(everything(after))
        for i, j in _kept_axes(shape, after):
            before[i] = got[j] = wanted[j]
    return before, got


def _kept_axes(shape: Shape, after: Shape) -> list[tuple[int, int]]:
    """Pairs of axes that a reshape leaves as they are."""
    return [
        (i, j)
        for i, dim in enumerate(shape)
        for j, other in enumerate(after)
        if dim == other and multiply(shape[:i]) == multiply(after[:j]) and dim != 1
    ]


def _cut(view: View, shape: Shape, after: Shape, before: Spans, got: Spans) -> View:
    """The view from the part `before` of its source to the part `got` of its result."""
    if isinstance(view, Slice):
        size = size_of(before[view.axis], shape[view.axis])
        assert not isinstance(size, Batch)
        start = view.start if before[view.axis] is None else 0
        stop = view.stop if before[view.axis] is None else size
        return Slice(view.axis, start, stop, view.step)
    if isinstance(view, Pad) and got[view.axis] is not None:
        dim, span = shape[view.axis], got[view.axis]
        assert not isinstance(dim, Batch)
        assert span is not None
        lead, trail = view.before - span[0], span[1] - view.before - dim
        return Pad(view.axis, max(lead, 0), max(trail, 0))
    if isinstance(view, Reshape | Expand):
        return type(view)(trimmed(after, got))
    return view
