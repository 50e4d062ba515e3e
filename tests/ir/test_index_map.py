"""Index maps: every meaning agrees with numpy: apply, strides, and the rendered expression."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vitc.ir.expr import Expr, Var, coordinates, source_of
from vitc.ir.index_map import Expand, IndexMap, Pad, Permute, Reshape, Roll, Slice, View
from vitc.ir.types import Batch, Shape, shape_at

B = Batch()
MAPS = [
    IndexMap(
        (B, 5, 24),
        (Reshape((B, 5, 3, 2, 4)), Permute((2, 0, 3, 1, 4)), Slice(0, 1, 2), Reshape((B, 2, 5, 4))),
    ),
    IndexMap(
        (B, 3, 8, 8),
        (Reshape((B, 3, 2, 4, 2, 4)), Permute((0, 2, 4, 1, 3, 5)), Reshape((B, 4, 48))),
    ),
    IndexMap(
        (B, 8, 8, 4),
        (
            Roll(1, -3),
            Roll(2, -3),
            Reshape((B, 2, 4, 2, 4, 4)),
            Permute((0, 1, 3, 2, 4, 5)),
            Reshape((Batch(4), 16, 4)),
        ),
    ),
    IndexMap(
        (Batch(4), 16, 4),
        (
            Reshape((B, 2, 2, 4, 4, 4)),
            Permute((0, 1, 3, 2, 4, 5)),
            Reshape((B, 8, 8, 4)),
            Roll(1, 3),
            Slice(1, 0, 7),
        ),
    ),
    IndexMap((B, 4, 6), (Pad(1, 1, 0), Slice(2, 1, 6, 2))),
    IndexMap((1, 4, 6), (Expand((B, 4, 6)), Reshape((Batch(4), 6)))),
    IndexMap((B, 4, 6), (Slice(1, 0, 1), Reshape((B, 6)))),
    IndexMap((B, 6), (Reshape((B, 1, 6)), Expand((B, 5, 6)))),
]


def expression_indices(index_map: IndexMap, batch: int) -> np.ndarray:
    """Flat source indices by evaluating the symbolic source at every element."""
    flat = Expr.of(Var("i"))
    coords = coordinates(index_map.result, flat)
    assert coords is not None
    source = source_of(index_map, coords)
    assert source is not None
    shape = shape_at(index_map.result, batch)
    found = []
    for i in range(int(np.prod(shape))):
        inside = all(0 <= g.value.evaluate({"i": i}) < g.size for g in source.guards)
        text = str(source.index).replace("/", "//")
        value = source.index.evaluate({"i": i})
        assert not inside or eval(text, {"i": i}) == value  # the C++ text means the same
        found.append(value if inside else -1)
    return np.array(found).reshape(shape)


@pytest.mark.parametrize("index_map", MAPS, ids=range(len(MAPS)))
def test_expression_agrees_with_numpy(index_map: IndexMap) -> None:
    assert np.array_equal(expression_indices(index_map, 3), index_map.row_offsets(3))
    assert np.array_equal(index_map.simplify().row_offsets(3), index_map.row_offsets(3))


@pytest.mark.parametrize("index_map", MAPS, ids=range(len(MAPS)))
def test_strides_agree_with_numpy(index_map: IndexMap) -> None:
    affine = index_map.strides()
    offsets = index_map.row_offsets(3)
    if affine is None:
        assert index_map.moves_zeros or any(
            isinstance(view, Roll | Permute | Expand) for view in index_map.views
        )
        return
    grid = np.indices(offsets.shape)
    assert np.array_equal(
        affine[0] + sum(s * g for s, g in zip(affine[1], grid, strict=True)), offsets
    )


@pytest.mark.parametrize("index_map", MAPS, ids=range(len(MAPS)))
def test_inverse_puts_elements_back_and_zeros_where_they_were_left_out(
    index_map: IndexMap,
) -> None:
    inverse = index_map.inverse()
    if inverse is None:
        steps = [view.step for view in index_map.views if isinstance(view, Slice)]
        assert any(isinstance(view, Pad | Expand) for view in index_map.views) or max(steps) > 1
        return
    array = 1 + np.arange(np.prod(shape_at(index_map.shape, 2)))
    array = array.reshape(shape_at(index_map.shape, 2))
    moved = index_map.apply(array, 2)
    assert np.array_equal(inverse.apply(moved, 2), np.where(np.isin(array, moved), array, 0))


def test_identity_is_the_flat_index() -> None:
    index_map = IndexMap((B, 197, 768), (Reshape((Batch(197), 768)), Reshape((B, 197, 12, 64))))
    coords = coordinates(index_map.result, Expr.of(Var("m")) * 64 + Expr.of(Var("j", 64)))
    assert coords is not None
    source = source_of(index_map, coords)
    assert source is not None
    assert str(source.index) == "j + m * 64"
    assert not source.guards


@st.composite
def random_maps(draw: st.DrawFn) -> IndexMap:
    shape: Shape = (B, *draw(st.lists(st.integers(1, 4), min_size=2, max_size=4)))
    index_map = IndexMap(shape)
    for _ in range(draw(st.integers(1, 5))):
        shape = index_map.result
        axis = draw(st.integers(1, len(shape) - 1))
        size = shape[axis]
        assert isinstance(size, int)
        kind = draw(st.sampled_from(["permute", "slice", "pad", "roll", "merge", "split"]))
        view: View
        if kind == "permute":
            view = Permute((0, *draw(st.permutations(range(1, len(shape))))))
        elif kind == "slice":
            start = draw(st.integers(0, size - 1))
            view = Slice(axis, start, draw(st.integers(start + 1, size)), draw(st.integers(1, 2)))
        elif kind == "pad":
            view = Pad(axis, draw(st.integers(0, 2)), draw(st.integers(0, 2)))
        elif kind == "roll":
            view = Roll(axis, draw(st.integers(-3, 3)))
        elif kind == "merge" and axis + 1 < len(shape):
            merged = size * int(np.prod(shape_at(shape[axis + 1 : axis + 2], 1)))
            view = Reshape((*shape[:axis], merged, *shape[axis + 2 :]))
        elif size % 2 == 0:
            view = Reshape((*shape[:axis], 2, size // 2, *shape[axis + 1 :]))
        else:
            continue
        index_map = index_map.then(view)
    return index_map


@settings(max_examples=60, deadline=None)
@given(random_maps())
def test_random_maps_agree_with_numpy(index_map: IndexMap) -> None:
    assert np.array_equal(expression_indices(index_map, 2), index_map.row_offsets(2))
    assert np.array_equal(index_map.simplify().row_offsets(2), index_map.row_offsets(2))
