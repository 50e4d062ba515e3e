"""Index maps in canonical form, and spans through them, against numpy on random maps."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vitc.ir.index_map import Expand, IndexMap, Pad, Permute, Reshape, Roll, Slice, View
from vitc.ir.types import Batch, Dim, Shape, shape_at
from vitc.passes.maps import (
    canonical,
    columns_read,
    keeps_columns,
    of_one_image,
    source_columns,
    with_columns,
)
from vitc.passes.spans import slices, through_map

B = Batch()


def factors(size: int, draw: st.DrawFn) -> list[int]:
    """The size as a product of one to three factors, ones among them."""
    parts: list[int] = []
    for _ in range(draw(st.integers(0, 2))):
        divisors = [d for d in range(1, size + 1) if size % d == 0]
        part = draw(st.sampled_from(divisors))
        parts.append(part)
        size //= part
    return [*parts, size]


@st.composite
def views(draw: st.DrawFn, shape: Shape) -> View:
    axis = draw(st.integers(0, len(shape) - 1))
    dim = shape[axis]
    kind = draw(st.sampled_from(["slice", "permute", "reshape", "pad", "roll", "expand"]))
    if kind == "permute":
        return Permute(tuple(draw(st.permutations(range(len(shape))))))
    if kind == "expand" and dim == 1:
        return Expand((*shape[:axis], 3, *shape[axis + 1 :]))
    if kind == "reshape" or isinstance(dim, Batch):
        return draw(reshapes(shape))
    if kind == "slice":
        start = draw(st.integers(0, dim - 1))
        stop = draw(st.integers(start + 1, dim))
        return Slice(axis, start, stop, draw(st.integers(1, 3)))
    if kind == "pad":
        return Pad(axis, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
    return Roll(axis, draw(st.integers(-3, 3)))


@st.composite
def reshapes(draw: st.DrawFn, shape: Shape) -> View:
    """Splits every axis at random, then merges some neighbours that are not the batch."""
    split: list[Dim] = []
    for dim in shape:
        split += [dim] if isinstance(dim, Batch) else factors(dim, draw)
    merged: list[Dim] = [split[0]]
    for dim in split[1:]:
        last = merged[-1]
        if not isinstance(dim, Batch) and not isinstance(last, Batch) and draw(st.booleans()):
            merged[-1] = last * dim
        else:
            merged.append(dim)
    return Reshape(tuple(merged))


@st.composite
def maps(draw: st.DrawFn) -> IndexMap:
    sizes = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=3))
    shape: Shape = (B, *sizes) if draw(st.booleans()) else tuple(sizes)
    result = IndexMap(shape)
    for _ in range(draw(st.integers(0, 5))):
        result = result.then(draw(views(result.result)))
    return result


@given(maps())
def test_canonical_moves_the_same_elements(index_map: IndexMap) -> None:
    form = canonical(index_map)
    assert form.result == index_map.result
    for batch in (1, 2):
        assert (form.row_offsets(batch) == index_map.row_offsets(batch)).all()
    assert canonical(form) == form


@given(maps(), st.data())
def test_spans_cut_the_same_elements(index_map: IndexMap, data: st.DataObject) -> None:
    shape = index_map.result
    wanted: list[tuple[int, int] | None] = []
    for dim in shape:
        if isinstance(dim, Batch) or data.draw(st.booleans()):
            wanted.append(None)
        else:
            start = data.draw(st.integers(0, dim - 1))
            wanted.append((start, data.draw(st.integers(start + 1, dim))))
    spans, part = through_map(index_map, tuple(wanted))
    source = np.arange(1, 1 + np.prod(shape_at(index_map.shape, 2))).reshape(
        shape_at(index_map.shape, 2)
    )
    expected = index_map.apply(source, 2)
    for view in slices((None,) * len(shape), tuple(wanted), shape):
        expected = view.apply(expected, 2)
    cut = source
    for view in slices((None,) * len(spans), spans, index_map.shape):
        cut = view.apply(cut, 2)
    assert (part.apply(cut, 2) == expected).all()


@given(maps())
def test_rows_move_whatever_their_width(index_map: IndexMap) -> None:
    if not keeps_columns(index_map):
        return
    wide = with_columns(index_map, 5)
    rows = IndexMap((*index_map.shape[:-1], 1)), with_columns(index_map, 1)
    assert wide.result == (*index_map.result[:-1], 5)
    offsets = rows[1].row_offsets(2)
    expected = np.where(offsets < 0, -1, offsets * 5 + np.arange(5))
    assert (wide.row_offsets(2) == expected).all()


@given(maps())
def test_columns_are_those_of_the_source(index_map: IndexMap) -> None:
    single = of_one_image(index_map)
    source = np.broadcast_to(np.arange(single.shape[-1]), shape_at(single.shape, 1))
    moved = single.apply(source + 1, 1) - 1
    assert (source_columns(index_map) == moved).all()
    assert set(np.flatnonzero(columns_read(index_map))) == set(np.unique(moved)) - {-1}


@pytest.mark.parametrize(
    ("views", "expected"),
    [
        (
            (
                Reshape((B, 5, 3, 2, 4)),
                Permute((2, 0, 3, 1, 4)),
                Slice(0, 1, 2),
                Reshape((B, 2, 5, 4)),
            ),
            (Slice(2, 8, 16), Reshape((B, 5, 2, 4)), Permute((0, 2, 1, 3))),
        ),
        (
            (Permute((0, 2, 1)), Reshape((B, 4, 6, 5)), Permute((0, 3, 1, 2))),
            (Reshape((B, 5, 4, 6)),),
        ),
        ((Slice(1, 0, 1), Reshape((B, 24))), (Slice(1, 0, 1), Reshape((B, 24)))),
    ],
)
def test_what_transformers_move(views: tuple[View, ...], expected: tuple[View, ...]) -> None:
    assert canonical(IndexMap((B, 5, 24), views)).views == expected
