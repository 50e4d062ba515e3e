"""Index expressions: what an index map means for one element, as integer arithmetic.

An expression is a sum `constant + sum(coefficient * atom)` over atoms that are variables, floor
divisions and remainders by constants. Everything is non-negative or guarded, so that C's division
agrees with Python's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd, inf, prod

from vitc.ir.index_map import Expand, IndexMap, Pad, Permute, Reshape, Roll, Slice, View
from vitc.ir.types import Batch, Dim, Shape, at_batch


@dataclass(frozen=True)
class Var:
    """A variable in [0, extent); extent None is unbounded (it depends on the batch)."""

    name: str
    extent: int | None = None

    def bounds(self) -> tuple[float, float]:
        return 0, inf if self.extent is None else self.extent - 1

    def __str__(self) -> str:
        return self.name


@dataclass(frozen=True)
class Quotient:
    """floor(of / by) or of mod by."""

    of: Expr
    by: int
    remainder: bool

    def bounds(self) -> tuple[float, float]:
        low, high = self.of.bounds()
        if self.remainder:
            return 0, self.by - 1
        return low // self.by, inf if high == inf else high // self.by

    def __str__(self) -> str:
        single = len(self.of.terms) == 1 and self.of.constant == 0 and self.of.terms[0][1] == 1
        of = str(self.of) if single else f"({self.of})"  # / and % bind from left to right
        return f"{of} {'%' if self.remainder else '/'} {self.by}"


Atom = Var | Quotient


@dataclass(frozen=True)
class Expr:
    """constant + sum of coefficient * atom; `terms` is sorted and has no zero coefficient."""

    terms: tuple[tuple[Atom, int], ...] = ()
    constant: int = 0

    @staticmethod
    def of(value: Expr | Atom | int) -> Expr:
        if isinstance(value, Expr):
            return value
        return Expr((), value) if isinstance(value, int) else Expr(((value, 1),))

    def __add__(self, other: Expr | int) -> Expr:
        other = Expr.of(other)
        return _sum([*self.terms, *other.terms], self.constant + other.constant)

    def __mul__(self, factor: int) -> Expr:
        return _sum([(atom, c * factor) for atom, c in self.terms], self.constant * factor)

    def bounds(self) -> tuple[float, float]:
        low = high = float(self.constant)
        for atom, coefficient in self.terms:
            ends = [bound * coefficient for bound in atom.bounds()]
            low, high = low + min(ends), high + max(ends)
        return low, high

    def __floordiv__(self, by: int) -> Expr:
        if by == 1:
            return self
        whole, rest = self._split(by)
        low, high = rest.bounds()
        if 0 <= low and high < by:
            return whole
        coarse = rest._coarse(by)
        if coarse is not None:
            return whole + coarse[1] // (by // coarse[0])
        atom = rest.terms[0][0] if rest.constant == 0 and len(rest.terms) == 1 else None
        if isinstance(atom, Quotient) and rest.terms[0][1] == 1 and not atom.remainder:
            return whole + Expr.of(Quotient(atom.of, atom.by * by, False))
        return whole + Expr.of(Quotient(rest, by, False))

    def __mod__(self, by: int) -> Expr:
        if by == 1:
            return Expr()
        _, rest = self._split(by)
        low, high = rest.bounds()
        if 0 <= low and high < by:
            return rest
        coarse = rest._coarse(by)
        if coarse is not None:
            grain, steps, fine = coarse
            return (steps % (by // grain)) * grain + fine
        atom = rest.terms[0][0] if rest.constant == 0 and len(rest.terms) == 1 else None
        if (
            isinstance(atom, Quotient)
            and rest.terms[0][1] == 1
            and atom.remainder
            and atom.by % by == 0
        ):
            return Expr.of(Quotient(atom.of, by, True))
        return Expr.of(Quotient(rest, by, True))

    def _coarse(self, by: int) -> tuple[int, Expr, Expr] | None:
        """(g, s, f) with self = g * s + f, g > 1 a divisor of `by` and 0 <= f < g."""
        for grain in sorted({gcd(by, c) for _, c in self.terms} - {1, by}, reverse=True):
            steps, fine = self._split(grain)
            low, high = fine.bounds()
            if steps.terms and 0 <= low and high < grain:
                return grain, steps, fine
        return None

    def _split(self, by: int) -> tuple[Expr, Expr]:
        """(q, r) with self = q * by + r and r free of multiples of `by`."""
        whole = [(atom, c // by) for atom, c in self.terms if c % by == 0]
        rest = [(atom, c) for atom, c in self.terms if c % by != 0]
        return _sum(whole, self.constant // by), _sum(rest, self.constant % by)

    def substitute(self, values: Mapping[str, Expr]) -> Expr:
        """The expression with variables replaced, simplified anew."""
        result = Expr((), self.constant)
        for atom, coefficient in self.terms:
            if isinstance(atom, Var):
                replaced = values.get(atom.name, Expr.of(atom))
            else:
                inner = atom.of.substitute(values)
                replaced = inner % atom.by if atom.remainder else inner // atom.by
            result = result + replaced * coefficient
        return result

    def coefficient(self, name: str) -> int | None:
        """c when the expression is c * name + (terms without name), else None."""
        found = 0
        for atom, c in self.terms:
            if isinstance(atom, Var):
                found += c if atom.name == name else 0
            elif name in variables(atom.of):
                return None
        return found

    def without(self, name: str) -> Expr:
        """The expression at name = 0, where `coefficient(name)` is not None."""
        return self.substitute({name: Expr()})

    def evaluate(self, values: Mapping[str, int]) -> int:
        return self.substitute({name: Expr((), value) for name, value in values.items()}).constant

    def __str__(self) -> str:
        """C++ text."""
        parts = [_term(atom, c) for atom, c in self.terms]
        if self.constant or not parts:
            parts.append(str(self.constant))
        return " + ".join(parts).replace("+ -", "- ")


def _term(atom: Atom, coefficient: int) -> str:
    return str(atom) if coefficient == 1 else f"{atom} * {coefficient}"


def _sum(terms: Sequence[tuple[Atom, int]], constant: int) -> Expr:
    """Collects terms and undoes splits: (x / c) * (c * k) + (x % c) * k is x * k."""
    collected: dict[Atom, int] = {}
    for atom, coefficient in terms:
        collected[atom] = collected.get(atom, 0) + coefficient
    for atom, k in list(collected.items()):
        if not isinstance(atom, Quotient) or not atom.remainder or collected.get(atom, 0) == 0:
            continue
        for divided in _quotients_of(atom):
            k = collected[atom]
            if k and collected.get(divided[0], 0) == divided[1] * k:
                collected[atom] = collected[divided[0]] = 0
                return _sum(
                    [*collected.items(), *(divided[2] * k).terms],
                    constant + (divided[2] * k).constant,
                )
    kept = [(atom, c) for atom, c in collected.items() if c]
    return Expr(tuple(sorted(kept, key=lambda item: (str(item[0]), item[1]))), constant)


def _quotients_of(atom: Quotient) -> list[tuple[Atom, int, Expr]]:
    """(d, c, x) such that c * d + atom = x: the division that belongs to a remainder."""
    found: list[tuple[Atom, int, Expr]] = [(Quotient(atom.of, atom.by, False), atom.by, atom.of)]
    only = atom.of.terms[0] if len(atom.of.terms) == 1 and atom.of.constant == 0 else None
    if (
        only is not None
        and isinstance(only[0], Quotient)
        and only[1] == 1
        and not only[0].remainder
    ):
        inner = only[0]  # (y / a) % c belongs to y / (a * c)
        found.append((Quotient(inner.of, inner.by * atom.by, False), atom.by, atom.of))
    return found


def variables(expr: Expr) -> frozenset[str]:
    """Names of the variables that occur."""
    names = set[str]()
    for atom, _ in expr.terms:
        names |= {atom.name} if isinstance(atom, Var) else variables(atom.of)
    return frozenset(names)


@dataclass(frozen=True)
class Guard:
    """The element exists where 0 <= value < size; elsewhere it is zero."""

    value: Expr
    size: int

    def __str__(self) -> str:
        low, high = self.value.bounds()
        tests = [f"{self.value} >= 0"] * (low < 0) + [f"{self.value} < {self.size}"] * (
            high >= self.size
        )
        return " && ".join(tests)


@dataclass(frozen=True)
class Source:
    """Where an element of a map's result comes from: flat source index and guards."""

    index: Expr
    guards: tuple[Guard, ...] = ()

    def substitute(self, values: Mapping[str, Expr]) -> Source:
        guards = (Guard(g.value.substitute(values), g.size) for g in self.guards)
        return Source(self.index.substitute(values), tuple(g for g in guards if str(g)))


def coordinates(shape: Shape, flat: Expr) -> list[Expr] | None:
    """Coordinates of element `flat` of a dense tensor; None when the batch is not outermost."""
    result: list[Expr] = []
    sizes = [at_batch(dim, 1) for dim in shape]
    outer = True  # all dimensions so far have size 1
    for axis, dim in enumerate(shape):
        if isinstance(dim, Batch) and not outer:
            return None
        quotient = flat // prod(sizes[axis + 1 :])
        result.append(Expr() if dim == 1 else quotient if outer else quotient % sizes[axis])
        outer = outer and dim == 1
    return result


def source_of(index_map: IndexMap, coords: Sequence[Expr]) -> Source | None:
    """Source of the result element at `coords`; None when the batch is in the way."""
    shapes = [index_map.shape]
    for view in index_map.views:
        shapes.append(view.infer(shapes[-1]))
    current: list[Expr] | None = list(coords)
    guards: list[Guard] = []
    for view, shape in zip(reversed(index_map.views), reversed(shapes[:-1]), strict=True):
        current = _backward(view, shape, current, guards)
        if current is None:
            return None
    index = Expr()
    for axis, coord in enumerate(current):
        stride = 1
        for dim in index_map.shape[axis + 1 :]:
            if isinstance(dim, Batch):
                if coord != Expr():
                    return None
                continue
            stride *= dim
        index = index + coord * stride
    return Source(index, tuple(guard for guard in guards if str(guard)))


def _backward(
    view: View, shape: Shape, coords: list[Expr], guards: list[Guard]
) -> list[Expr] | None:
    """Coordinates before `view`, whose source has `shape`."""
    result = list(coords)
    if isinstance(view, Reshape):
        return _unreshape(shape, view.shape, coords)
    if isinstance(view, Permute):
        for axis, source_axis in enumerate(view.axes):
            result[source_axis] = coords[axis]
    elif isinstance(view, Slice):
        result[view.axis] = coords[view.axis] * view.step + view.start
    elif isinstance(view, Pad):
        result[view.axis] = coords[view.axis] + -view.before
        guards.append(Guard(result[view.axis], at_batch(shape[view.axis], 1)))
    elif isinstance(view, Roll):
        size = at_batch(shape[view.axis], 1)
        result[view.axis] = (coords[view.axis] + (-view.shift) % size) % size
    else:
        assert isinstance(view, Expand)
        offset = len(view.shape) - len(shape)
        result = [Expr() if dim == 1 else coords[offset + axis] for axis, dim in enumerate(shape)]
    return result


def _unreshape(old: Shape, new: Shape, coords: Sequence[Expr]) -> list[Expr] | None:
    """Coordinates in `old` of the element at `coords` in `new`, group by group."""
    result: list[Expr] = []
    i = j = 0
    while i < len(old) or j < len(new):
        i_end, j_end = _group(old, new, i, j)
        flat = Expr()
        for axis in range(j, j_end):
            inner = new[axis + 1 : j_end]
            if any(isinstance(dim, Batch) for dim in inner):
                return None
            flat = flat + coords[axis] * prod(at_batch(dim, 1) for dim in inner)
        part = coordinates(old[i:i_end], flat)
        if part is None:
            return None
        result += part
        i, j = i_end, j_end
    return result


def _group(old: Shape, new: Shape, i: int, j: int) -> tuple[int, int]:
    """Ends of the shortest runs from i and j that hold equally many elements."""

    def size(dims: Sequence[Dim]) -> tuple[int, bool]:
        return prod(at_batch(d, 1) for d in dims), any(isinstance(d, Batch) for d in dims)

    i_end, j_end = min(i + 1, len(old)), min(j + 1, len(new))
    while size(old[i:i_end]) != size(new[j:j_end]):
        left, right = size(old[i:i_end]), size(new[j:j_end])
        grow_old = left[0] < right[0] or (left[0] == right[0] and right[1] and not left[1])
        if (grow_old and i_end < len(old)) or j_end >= len(new):
            i_end += 1
        else:
            j_end += 1
    # What is left of one side when the other is done has size 1 and belongs to this group.
    if j_end == len(new):
        i_end = len(old)
    if i_end == len(old):
        j_end = len(new)
    return i_end, j_end
