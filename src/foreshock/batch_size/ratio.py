"""The band of a ratio of two means: Fieller's, which may be open above."""

from __future__ import annotations

import math
from statistics import NormalDist
from typing import NamedTuple


class Ratio(NamedTuple):
    """x / y, its standard error by the delta method, and the band; infinite where y may be 0."""

    value: float
    se: float
    low: float
    high: float


def ratio_band(x: float, y: float, covariance: tuple[float, float, float], quantile: float) -> Ratio:
    """Returns the ratio of two estimates that cannot be negative, with the band of what it may be.

    The band holds all r >= 0 with (x - r y)^2 <= q^2 (V_xx - 2 r V_xy + r^2 V_yy). Where y is within q standard errors
    of 0, or below it, the band has no upper end: the value is then NaN and the standard error infinite, and the lower
    end is what can be said.

    >>> ratio_band(6.0, 2.0, (0.0, 0.0, 0.0), 2.0)
    Ratio(value=3.0, se=0.0, low=3.0, high=3.0)
    >>> ratio_band(6.0, 2.0, (0.0, 0.0, 4.0), 2.0)
    Ratio(value=nan, se=inf, low=1.0, high=inf)

    Args:
        x: the numerator.
        y: the denominator.
        covariance: V_xx, V_xy, V_yy of the two.
        quantile: q, the band's half width in standard errors.

    Source: Fieller 1954, JRSS B 16, 175.
    """
    xx, xy, yy = covariance
    q2 = quantile * quantile
    a, b, c = y * y - q2 * yy, x * y - q2 * xy, x * x - q2 * xx
    if not (y > 0.0 and a > 0.0):  # NaN is no better than 0
        return Ratio(math.nan, math.inf, _least(a, b, c), math.inf)
    r = x / y
    se = math.sqrt(max(0.0, xx - 2 * r * xy + r * r * yy)) / y
    root = math.sqrt(max(0.0, b * b - a * c))
    return Ratio(r, se, max(0.0, (b - root) / a), max(0.0, (b + root) / a))


def _least(a: float, b: float, c: float) -> float:
    """Returns the lower end of the ray on which a r^2 - 2 b r + c <= 0, a <= 0; 0.0 where all of r >= 0 is in it."""
    inside = b * b - a * c
    if not (c > 0.0 and inside > 0.0):
        return 0.0
    return max(0.0, c / (b + math.sqrt(inside))) if b + math.sqrt(inside) > 0.0 else 0.0


def student(confidence: float, df: float) -> float:
    """Returns Student's two-sided quantile, by the expansion in 1/df of Fisher and Cornish: within 1 % from df = 3 on.

    >>> round(student(0.95, 10), 3), round(student(0.95, 1e9), 3)  # 2.228 and 1.960 in tables
    (2.228, 1.96)
    """
    z = NormalDist().inv_cdf(0.5 + 0.5 * confidence)
    z2 = z * z
    first = (z2 + 1) / 4
    second = ((5 * z2 + 16) * z2 + 3) / 96
    third = (((3 * z2 + 19) * z2 + 17) * z2 - 15) / 384
    return z * (1 + first / df + second / df**2 + third / df**3)
