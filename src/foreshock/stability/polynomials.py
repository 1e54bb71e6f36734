"""Polynomials with real coefficients, and their roots where slow poles crowd around z = 1. Never imports torch."""

from __future__ import annotations

import math
from collections.abc import Sequence
from fractions import Fraction

import numpy as np

__all__ = ["around_one", "product", "roots", "total", "value"]

NOTHING = 1e-25  # a leading coefficient this small (relative) puts its root far beyond all that matter here


def around_one(polynomial: Sequence[Fraction]) -> np.ndarray:
    """Returns the coefficients in w = z - 1, highest power first, of a polynomial in z given the same way.

    Slow poles crowd at z = 1, where the powers of z cancel digit by digit: exact arithmetic keeps them apart.

    >>> around_one([Fraction(1), Fraction(-2), Fraction(1)])  # (z - 1)^2
    array([1., 0., 0.])
    """
    rest, shifted = list(polynomial), []
    while rest:
        for place in range(1, len(rest)):  # Horner at z = 1: the quotient stays in `rest`, the remainder is its last
            rest[place] += rest[place - 1]
        shifted.append(float(rest.pop()))
    return np.array(shifted[::-1])


def roots(polynomial: np.ndarray) -> np.ndarray:
    """Returns the roots of a polynomial, highest power first; those far beyond all others are infinite."""
    size = np.abs(polynomial)
    far = int((size > NOTHING * size.max(initial=0.0)).argmax())
    return np.append(np.roots(polynomial[far:]), [math.inf] * far)


def value(coefficients: Sequence[float], x: complex) -> complex:
    """Returns c_0 + c_1 x + c_2 x^2 + ..."""
    result: complex = 0.0
    for coefficient in reversed(coefficients):
        result = result * x + coefficient
    return result


def product(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    """Returns the coefficients of a product; both in the same order of powers.

    >>> product((1, 2), (3, 4))
    (3.0, 10.0, 8.0)
    """
    result = [0.0] * (len(left) + len(right) - 1)
    for i, x in enumerate(left):
        for j, y in enumerate(right):
            result[i + j] += x * y
    return tuple(result)


def total(left: Sequence[float], right: Sequence[float]) -> tuple[float, ...]:
    """Returns the coefficients of a sum; both by rising powers.

    >>> total((1, 2), (3,))
    (4, 2.0)
    """
    size = max(len(left), len(right))
    padded = ((*left, *(0.0,) * (size - len(left))), (*right, *(0.0,) * (size - len(right))))
    return tuple(x + y for x, y in zip(*padded, strict=True))
