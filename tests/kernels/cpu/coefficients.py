"""Derives the polynomial coefficients of vitc/templates/include/vitc/cpu/math.h.

Both are weighted least squares on Chebyshev nodes, re-weighted until the error is level (Lawson's
iteration), hence close to minimax. Run as a script to print the tables of the header.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.polynomial import chebyshev
from numpy.typing import NDArray

Array = NDArray[np.float64]
GELU_RANGE = 5.6  # phi(-5.6) * 5.6 = 6e-8: beyond it GELU is x or 0 to float32


def level_fit(basis: Array, target: Array, weight: Array, rounds: int = 400) -> Array:
    """Coefficients c that make max |weight * (basis @ c - target)| nearly least."""
    emphasis = np.ones_like(target)
    fit = np.zeros(basis.shape[1])
    for _ in range(rounds):
        scale = weight * np.sqrt(emphasis)
        fit = np.linalg.lstsq(basis * scale[:, None], target * scale, rcond=None)[0]
        error = np.abs(weight * (basis @ fit - target))
        emphasis *= np.sqrt(error / error.mean() + 1e-3)
        emphasis /= emphasis.mean()
    return fit


def nodes(count: int = 4000) -> Array:
    """Chebyshev nodes of [-1, 1]."""
    return np.cos((np.arange(count) + 0.5) * np.pi / count)


def exp2_coefficients(degree: int = 6) -> Array:
    """2**f for f in [-0.5, 0.5], relative error, ascending powers of f."""
    f = nodes() / 2
    value = np.exp2(f)
    return level_fit(np.vander(f, degree + 1, increasing=True), value, 1 / value)


def gelu_tail_coefficients(degree: int = 10) -> Array:
    """R(a) = phi(-a) * exp(a*a/2) for a in [0, GELU_RANGE], phi the normal distribution function.

    Ascending powers of u = 2a/GELU_RANGE - 1. The weight levels the absolute error of GELU's tail
    a * exp(-a*a/2) * R(a) for a >= 1 and its error relative to a below.
    """
    u = nodes()
    a = (u + 1) * GELU_RANGE / 2
    value = np.array([0.5 * math.erfc(t / math.sqrt(2)) * math.exp(t * t / 2) for t in a])
    weight = a * np.exp(-a * a / 2) / np.minimum(a, 1)
    return chebyshev.cheb2poly(level_fit(chebyshev.chebvander(u, degree), value, weight))


if __name__ == "__main__":
    for name, table in (("exp2", exp2_coefficients()), ("gelu tail", gelu_tail_coefficients())):
        print(name, ", ".join(f"{c:.9e}f" for c in table))
