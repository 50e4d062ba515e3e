"""Index maps: data movement as a value.

A map is a list of views that turn a dense tensor into another one: each element of the result is
one element of the source, or zero. Maps compose, simplify, apply to numpy arrays, tell their
strides when they are affine, and turn into an expression that kernels evaluate (`expr.py`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vitc.ir.types import Batch, Dim, Shape, at_batch, multiply, shape_at

Array = NDArray[Any]


@dataclass(frozen=True)
class Reshape:
    """The same elements in the same order under another shape."""

    shape: Shape

    def infer(self, shape: Shape) -> Shape:
        if multiply(shape) != multiply(self.shape):
            raise ValueError(f"reshape of {_show(shape)} to {_show(self.shape)}")
        return self.shape

    def apply(self, array: Array, batch: int) -> Array:
        return np.reshape(array, shape_at(self.shape, batch))


@dataclass(frozen=True)
class Permute:
    """Axis i of the result is axis `axes[i]` of the source."""

    axes: tuple[int, ...]

    def infer(self, shape: Shape) -> Shape:
        if sorted(self.axes) != list(range(len(shape))):
            raise ValueError(f"permute {list(self.axes)} of {_show(shape)}")
        return tuple(shape[axis] for axis in self.axes)

    def apply(self, array: Array, batch: int) -> Array:
        return np.transpose(array, self.axes)


@dataclass(frozen=True)
class Slice:
    """Elements start, start + step, ... below stop of one axis (not the batch)."""

    axis: int
    start: int
    stop: int
    step: int = 1

    def infer(self, shape: Shape) -> Shape:
        dim = shape[self.axis]
        if isinstance(dim, Batch) or not 0 <= self.start < self.stop <= dim or self.step < 1:
            raise ValueError(
                f"slice {self.start}:{self.stop}:{self.step} of axis {self.axis} of {_show(shape)}"
            )
        size = -(-(self.stop - self.start) // self.step)
        return (*shape[: self.axis], size, *shape[self.axis + 1 :])

    def apply(self, array: Array, batch: int) -> Array:
        index = [slice(None)] * array.ndim
        index[self.axis] = slice(self.start, self.stop, self.step)
        return array[tuple(index)]


@dataclass(frozen=True)
class Pad:
    """`before` zeros in front of one axis and `after` zeros behind it."""

    axis: int
    before: int
    after: int

    def infer(self, shape: Shape) -> Shape:
        dim = shape[self.axis]
        if isinstance(dim, Batch) or self.before < 0 or self.after < 0:
            raise ValueError(
                f"pad ({self.before}, {self.after}) of axis {self.axis} of {_show(shape)}"
            )
        return (
            *shape[: self.axis],
            dim + self.before + self.after,
            *shape[self.axis + 1 :],
        )

    def apply(self, array: Array, batch: int) -> Array:
        widths = [(0, 0)] * array.ndim
        widths[self.axis] = (self.before, self.after)
        return np.pad(array, widths)


@dataclass(frozen=True)
class Roll:
    """Cyclic shift of one axis: element i of the source lands at (i + shift) mod size."""

    axis: int
    shift: int

    def infer(self, shape: Shape) -> Shape:
        if isinstance(shape[self.axis], Batch):
            raise ValueError(f"roll of the batch axis of {_show(shape)}")
        return shape

    def apply(self, array: Array, batch: int) -> Array:
        return np.roll(array, self.shift, self.axis)


@dataclass(frozen=True)
class Expand:
    """Broadcast to `shape`, numpy's rule (new axes come first)."""

    shape: Shape

    def infer(self, shape: Shape) -> Shape:
        offset = len(self.shape) - len(shape)
        if offset < 0 or any(dim not in (1, self.shape[offset + i]) for i, dim in enumerate(shape)):
            raise ValueError(f"expand of {_show(shape)} to {_show(self.shape)}")
        return self.shape

    def apply(self, array: Array, batch: int) -> Array:
        return np.broadcast_to(array, shape_at(self.shape, batch))


View = Reshape | Permute | Slice | Pad | Roll | Expand
VIEWS: tuple[type[View], ...] = (Reshape, Permute, Slice, Pad, Roll, Expand)


@dataclass(frozen=True)
class IndexMap:
    """Views applied from first to last. `shape` is that of the source: a map stands alone."""

    shape: Shape
    views: tuple[View, ...] = ()

    @property
    def result(self) -> Shape:
        """Shape after all views. Raises ValueError when a view does not fit."""
        shape = self.shape
        for view in self.views:
            shape = view.infer(shape)
        return shape

    @property
    def is_identity(self) -> bool:
        """Whether the map renames nothing: the dense memory of source and result is the same."""
        return all(isinstance(view, Reshape) for view in self.views)

    @property
    def moves_zeros(self) -> bool:
        """Whether some result elements are zeros that the source does not hold."""
        return any(isinstance(view, Pad) for view in self.views)

    def then(self, view: View) -> IndexMap:
        return IndexMap(self.shape, (*self.views, view))

    def compose(self, later: IndexMap) -> IndexMap:
        """This map, then `later` (whose source must be this map's result)."""
        views = self.views
        if later.shape != self.result:
            views = (*views, Reshape(later.shape))
        return IndexMap(self.shape, views + later.views).simplify()

    def apply(self, array: Array, batch: int = 1) -> Array:
        """The moved tensor. `array` has the source's shape at `batch`."""
        for view in self.views:
            array = view.apply(array, batch)
        return array

    def inverse(self) -> IndexMap | None:
        """The map from the result back to the source; zeros where the result has left elements out.

        None for maps that repeat or skip elements, or make zeros.
        """
        views: list[View] = []
        shape = self.shape
        for view in self.views:
            if isinstance(view, Reshape):
                views.append(Reshape(shape))
            elif isinstance(view, Permute):
                views.append(Permute(tuple(int(axis) for axis in np.argsort(view.axes))))
            elif isinstance(view, Roll):
                views.append(Roll(view.axis, -view.shift))
            elif isinstance(view, Slice) and view.step == 1:
                size = at_batch(shape[view.axis], 1)
                views.append(Pad(view.axis, view.start, size - view.stop))
            else:
                return None
            shape = view.infer(shape)
        return IndexMap(shape, tuple(reversed(views))).simplify()

    def strides(self) -> tuple[int, tuple[int, ...]] | None:
        """(offset, stride per result axis) in elements when the map is affine, else None.

        The source must be dense with the batch outermost, so that strides do not depend on it.
        """
        batch = 3  # any size > 1 makes numpy keep the batch axis apart
        sizes = shape_at(self.shape, batch)
        steps = tuple(int(prod(sizes[i + 1 :])) for i in range(len(sizes)))
        base = np.zeros(1, np.int8)
        array = np.lib.stride_tricks.as_strided(base, sizes, steps)
        start = _address(array)
        for view in self.views:
            if isinstance(view, Pad) or (
                isinstance(view, Roll) and view.shift % array.shape[view.axis]
            ):
                return None
            if isinstance(view, Reshape):
                try:
                    array = np.reshape(array, shape_at(view.shape, batch), copy=False)
                except ValueError:  # would need a copy: not affine
                    return None
            elif not isinstance(view, Roll):
                array = view.apply(array, batch)
        return _address(array) - start, array.strides

    def row_offsets(self, batch: int = 1) -> NDArray[np.int64]:
        """Flat source index of every result element, -1 for zeros. For tests and small maps."""
        size = prod(shape_at(self.shape, batch))
        source = np.reshape(np.arange(1, size + 1), shape_at(self.shape, batch))
        return self.apply(source, batch) - 1

    def simplify(self) -> IndexMap:
        """The same map with fewer views: neighbours merged, identities dropped."""
        views = list(self.views)
        changed = True
        while changed:
            changed = False
            shape = self.shape
            for i, view in enumerate(views):
                if _is_noop(view, shape):
                    del views[i]
                    changed = True
                    break
                merged = _merge(view, views[i + 1]) if i + 1 < len(views) else None
                if merged is not None:
                    views[i : i + 2] = [merged]
                    changed = True
                    break
                shape = view.infer(shape)
        return IndexMap(self.shape, tuple(views))


def _address(array: Array) -> int:
    return int(array.__array_interface__["data"][0])


def _is_noop(view: View, shape: Shape) -> bool:
    if isinstance(view, Roll):
        return view.shift % at_batch(shape[view.axis], 1) == 0
    if isinstance(view, Permute):
        return view.axes == tuple(range(len(view.axes)))
    return view.infer(shape) == shape and not (isinstance(view, Slice) and view.start)


def _merge(first: View, second: View) -> View | None:
    """One view that does both, or None."""
    if isinstance(first, Reshape) and isinstance(second, Reshape):
        return second
    if isinstance(first, Permute) and isinstance(second, Permute):
        return Permute(tuple(first.axes[axis] for axis in second.axes))
    if isinstance(first, Roll) and isinstance(second, Roll) and first.axis == second.axis:
        return Roll(first.axis, first.shift + second.shift)
    if isinstance(first, Pad) and isinstance(second, Pad) and first.axis == second.axis:
        return Pad(first.axis, first.before + second.before, first.after + second.after)
    if isinstance(first, Slice) and isinstance(second, Slice) and first.axis == second.axis:
        start = first.start + second.start * first.step
        count = -(-(second.stop - second.start) // second.step)
        step = first.step * second.step
        return Slice(first.axis, start, start + (count - 1) * step + 1, step)
    if isinstance(first, Expand) and isinstance(second, Expand):
        return second
    return None


def _show(shape: Sequence[Dim]) -> str:
    return f"[{','.join(map(str, shape))}]"
