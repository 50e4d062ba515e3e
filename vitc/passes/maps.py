"""Index maps in one canonical form, so that rules see slices first and equal maps look equal.

An affine stretch of views (no padding, no rolling) is rebuilt from its strides as

    slices of source axes, reshape, slices, permute, reshape, expand

with every part left out that does nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from math import prod

import numpy as np
from numpy.typing import NDArray

from vitc.ir.index_map import Expand, IndexMap, Pad, Permute, Reshape, Roll, Slice, View
from vitc.ir.types import Batch, Dim, Shape, shape_at

_BATCH = 3  # what IndexMap.strides assumes


@lru_cache(maxsize=4096)
def canonical(index_map: IndexMap) -> IndexMap:
    """The same map in canonical form (or merely simplified where strides cannot say it)."""
    done: list[View] = []
    source, stretch = index_map.shape, IndexMap(index_map.shape)
    for view in index_map.views:
        longer = stretch.then(view)
        if isinstance(view, Pad | Roll):
            done += [*_affine(stretch).views, view]
            source = longer.result
            stretch = IndexMap(source)
        elif longer.strides() is None:  # a reshape that merges what does not lie together
            done += _affine(stretch).views
            source = stretch.result
            stretch = IndexMap(source, (view,))
        else:
            stretch = longer
    done += _affine(stretch).views
    views = tuple(_tight(view) for view in done)
    result = IndexMap(index_map.shape, views).simplify()
    return result if result.result == index_map.result else index_map


def _tight(view: View) -> View:
    """A slice that stops right behind its last element."""
    if not isinstance(view, Slice):
        return view
    count = -(-(view.stop - view.start) // view.step)
    return Slice(view.axis, view.start, view.start + (count - 1) * view.step + 1, view.step)


def _affine(index_map: IndexMap) -> IndexMap:
    plain = index_map.simplify()
    strides = plain.strides()
    if strides is None:
        return plain
    rebuilt = _rebuild(plain, *strides)
    if rebuilt is None or rebuilt.result != plain.result:
        return plain
    return rebuilt if _same(plain.result, strides, rebuilt.strides()) else plain


def _same(
    shape: Shape, a: tuple[int, tuple[int, ...]], b: tuple[int, tuple[int, ...]] | None
) -> bool:
    """Whether two (offset, strides) visit the same elements: the stride of one row is no matter."""
    sizes = shape_at(shape, _BATCH)
    if b is None or a[0] != b[0]:
        return False
    return all(s == t or n == 1 for s, t, n in zip(a[1], b[1], sizes, strict=True))


@dataclass
class _Digit:
    """One digit of the source's mixed-radix index: `size` values, of which `count` from `first`.

    axis: the result axis that counts it, or None for a digit held at `first`.
    """

    size: int
    stride: int
    first: int
    count: int
    dim: Dim
    axis: int | None


def _rebuild(index_map: IndexMap, offset: int, strides: tuple[int, ...]) -> IndexMap | None:
    """The map in canonical form from its strides, or None when digits overlap."""
    digits = _digits(index_map, offset, strides)
    blocks = None if digits is None else _blocks(index_map.shape, digits)
    if digits is None or blocks is None:
        return None
    shape, result = index_map.shape, index_map.result
    views: list[View] = []
    for axes, members in blocks:  # slices that source axes allow
        if len(axes) == 1 and (cut := _axis_slice(members)) is not None:
            start, stop, step = cut
            if (start, stop, step) != (0, shape_at(shape, _BATCH)[axes[0]], 1):
                views.append(Slice(axes[0], start, stop, step))
            for digit in members:
                digit.size, digit.first = digit.count, 0
    split = tuple(_digit_dim(digit) for digit in digits)
    views.append(Reshape(split))
    views += [
        Slice(i, digit.first, digit.first + digit.count)
        for i, digit in enumerate(digits)
        if digit.count != digit.size
    ]
    counted = [i for i, digit in enumerate(digits) if digit.axis is not None]
    places = {digits[i].axis: place for place, i in enumerate(counted)}
    order = tuple(places[axis] for axis in sorted(axis for axis in places if axis is not None))
    sizes = shape_at(result, _BATCH)
    narrow = tuple(
        dim if axis in places or sizes[axis] == 1 else 1 for axis, dim in enumerate(result)
    )
    views.append(Reshape(tuple(digits[i].dim for i in counted)))
    views += [Permute(order), Reshape(narrow), Expand(result)]
    return IndexMap(shape, tuple(views)).simplify()


def _digit_dim(digit: _Digit) -> Dim:
    return digit.dim if digit.count == digit.size else digit.size


def _digits(index_map: IndexMap, offset: int, strides: tuple[int, ...]) -> list[_Digit] | None:
    """The source index as digits, most significant first; None when the axes do not nest."""
    result = index_map.result
    sizes = shape_at(result, _BATCH)
    axes = [i for i, size in enumerate(sizes) if size > 1 and strides[i] != 0]
    axes.sort(key=lambda i: -strides[i])
    total = prod(shape_at(index_map.shape, _BATCH))
    digits: list[_Digit] = []
    above = total
    for i in axes:
        stride = strides[i]
        if stride <= 0 or above % stride:
            return None
        size, first = above // stride, (offset % above) // stride
        if first + sizes[i] > size or (isinstance(result[i], Batch) and sizes[i] != size):
            return None
        digits.append(_Digit(size, stride, first, sizes[i], result[i], i))
        above = stride
    if above > 1:
        digits.append(_Digit(above, 1, offset % above, 1, 1, None))
    return digits


def _blocks(shape: Shape, digits: list[_Digit]) -> list[tuple[list[int], list[_Digit]]] | None:
    """Runs of source axes with the digits that cover the same span, most significant first.

    A digit that spans several axes whole is cut at the axes' borders only where that needs no new
    digit, which keeps the blocks as coarse as they must be.
    """
    sizes = shape_at(shape, _BATCH)
    ends = [(axis, prod(sizes[axis + 1 :])) for axis in range(len(sizes))]
    _split_held(digits, [end for _, end in ends])
    blocks: list[tuple[list[int], list[_Digit]]] = []
    remaining = list(digits)
    axes: list[int] = []
    for axis, end in ends:
        axes.append(axis)
        members = [digit for digit in remaining if digit.stride >= end]
        if not members and any(sizes[held] > 1 for held in axes):
            continue
        if not members or members[-1].stride == end:
            blocks.append((axes, members))
            remaining = remaining[len(members) :]
            axes = []
    if axes:
        return None
    if any(isinstance(shape[a], Batch) and _partial(m) for a_s, m in blocks for a in a_s):
        return None
    return blocks


def _split_held(digits: list[_Digit], ends: list[int]) -> None:
    """Cuts digits of which part is read at the borders of source axes where one value is held.

    x[:, 0] has strides that tell of a batch digit and one big held digit (row and column); the
    row's part of it is what a slice of the source axis says.
    """
    for end in ends:
        for i, digit in enumerate(digits):
            inner = digit.stride
            span = digit.size * inner
            inside = inner < end < span and span % end == 0 and end % inner == 0
            if not inside or digit.count == digit.size:
                continue
            low = end // inner
            if digit.first % low + digit.count <= low:  # the upper part is held
                upper = _Digit(digit.size // low, end, digit.first // low, 1, 1, None)
                digit.size, digit.first = low, digit.first % low
                digits.insert(i, upper)
                break


def _partial(members: list[_Digit]) -> bool:
    return any(digit.count != digit.size for digit in members)


def _axis_slice(members: list[_Digit]) -> tuple[int, int, int] | None:
    """(start, stop, step) on the source axis that selects the digits' values, if one does."""
    if not members:
        return None
    base = members[-1].stride
    start = sum(digit.first * digit.stride for digit in members) // base
    step = 1
    inner = list(members)
    if len(inner) > 1 and inner[-1].count == 1 and inner[-1].size > 1:
        step = inner.pop().size
    partial = [i for i, digit in enumerate(inner) if digit.count != digit.size]
    if partial and any(digit.count != 1 for digit in inner[: partial[-1]]):
        return None
    count = prod(digit.count for digit in inner)
    return start, start + (count - 1) * step + 1, step


def is_bijective(index_map: IndexMap) -> bool:
    """Whether the map only reshapes and permutes."""
    return all(isinstance(view, Reshape | Permute) for view in index_map.views)


def keeps_columns(index_map: IndexMap) -> bool:
    """Whether the map moves whole rows: the last axis of the result is that of the source."""
    shape = index_map.shape
    if not shape:
        return False
    for view in index_map.views:
        if isinstance(view, Permute):
            if view.axes[-1] != len(shape) - 1:
                return False
        elif isinstance(view, Reshape | Expand):
            if not view.shape or view.shape[-1] != shape[-1]:
                return False
        elif view.axis == len(shape) - 1:
            return False
        shape = view.infer(shape)
    return True


def with_columns(index_map: IndexMap, columns: Dim) -> IndexMap:
    """The same movement of rows (see `keeps_columns`) for rows of another width."""
    views = tuple(
        type(view)((*view.shape[:-1], columns)) if isinstance(view, Reshape | Expand) else view
        for view in index_map.views
    )
    return IndexMap((*index_map.shape[:-1], columns), views)


@lru_cache(maxsize=512)
def in_whole_rows(index_map: IndexMap) -> IndexMap | None:
    """The map to [..., k, C] when each row of its result is k whole rows of the source, else None.

    With k = 1 it moves rows (`keeps_columns`); patch merging has k = 4.
    """
    result = index_map.result
    if not index_map.shape or not result:
        return None
    columns, width = index_map.shape[-1], result[-1]
    if isinstance(columns, Batch) or isinstance(width, Batch) or width % columns:
        return None
    pieces = canonical(index_map.then(Reshape((*result[:-1], width // columns, columns))))
    return pieces if keeps_columns(pieces) else None


def of_one_image(index_map: IndexMap) -> IndexMap:
    """The map at batch 1, for constants."""
    views = tuple(
        type(view)(shape_at(view.shape, 1)) if isinstance(view, Reshape | Expand) else view
        for view in index_map.views
    )
    return IndexMap(shape_at(index_map.shape, 1), views)


@lru_cache(maxsize=512)
def source_columns(index_map: IndexMap) -> NDArray[np.int64]:
    """For each element of the result at batch 1, the source's column (last index), -1 for zeros."""
    offsets = index_map.row_offsets(1)
    columns = np.where(offsets < 0, -1, offsets % shape_at(index_map.shape, 1)[-1])
    columns.setflags(write=False)
    return columns


@lru_cache(maxsize=512)
def columns_read(index_map: IndexMap) -> NDArray[np.bool_]:
    """Mask over the source's columns: those that some result element comes from."""
    mask = np.zeros(shape_at(index_map.shape, 1)[-1], bool)
    columns = source_columns(index_map)
    mask[columns[columns >= 0]] = True
    mask.setflags(write=False)
    return mask
