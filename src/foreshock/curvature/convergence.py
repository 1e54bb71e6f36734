"""When a Krylov space has told enough: estimates of the error of Ritz values, and of what they may have missed."""

from __future__ import annotations

import math

import numpy as np

from foreshock.curvature.krylov import Krylov, Ritz

_LEAST = 3  # products before any verdict
_CONFIRMED = 5  # products from which on one look at the estimates suffices
_UNLIKELY = 1e-4  # share of 1/n that a random start has of an eigenvector 99 times in 100; its root, 11 in 12
_INFORMED = 1e-4  # share in the Ritz vector from which on a start counts as better than random
# Where a second value of such a size is in sight there are often more, as at the edge of stability, and a gradient has
# to be amplified as well: without, a third of the readings there are more than 1 % off, with it a tenth.
_NEAR, _CROWD = 0.9, 100.0
_CROWDED_WARM = 5.0  # times as far as else: of RMSprop's readings at the edge 94 % are within 2 % without, all with it
_CAREFUL = 10000  # dimension up to which not even a gradient is taken to know anything: certainty is cheap there


class Convergence:
    """Judges from the history of Ritz values and residuals whether the wanted ones are within a tolerance.

    Two estimates of a value's error are used: residual^2 / gap, which bounds it once the neighbours are resolved, and
    what a geometric series leaves, increment * rho / (1 - rho), where rho is the decrease of residual^2 per step. A
    value counts as converged when the first is below a tenth of the tolerance, or when both agree: after five products
    the second within the tolerance and the first within twice it, earlier both within it and only where the neighbour
    that the gap is measured to has settled.
    Whether a larger eigenvalue is hidden altogether is another question: see `Hidden`.
    """

    def __init__(self, tol: float) -> None:
        self.tol = tol
        self._before: tuple[np.ndarray, np.ndarray] | None = None

    def judge(self, ritz: Ritz, chosen: np.ndarray, products: int, scale: float) -> tuple[np.ndarray, np.ndarray]:
        """Returns estimated errors and whether converged, of the chosen Ritz pairs."""
        values, residuals = ritz.values[chosen], ritz.residuals[chosen]
        errors = errors_of(ritz, chosen)
        size = np.maximum(np.abs(values), scale)
        done = (errors <= 0.1 * self.tol * size) & (products >= _LEAST)
        if self._before is not None and len(self._before[0]) == len(values):
            old_values, old_residuals = self._before
            with np.errstate(divide="ignore", invalid="ignore"):
                rho = (residuals / old_residuals) ** 2
                left = np.where(rho < 1.0, np.abs(values - old_values) * rho / (1.0 - rho), np.inf)
            if products >= _CONFIRMED:
                agreed = (left <= self.tol * size) & (errors <= 2.0 * self.tol * size)
            else:
                agreed = (left <= self.tol * size) & (errors <= self.tol * size) & _resolved(ritz, chosen)
                agreed &= products >= _LEAST
            done |= agreed
            errors = np.where(agreed, np.maximum(left, errors / 10.0), errors)
        self._before = values, residuals
        return errors, done


def errors_of(ritz: Ritz, chosen: np.ndarray) -> np.ndarray:
    """Returns min(r, r^2 / gap) of the chosen pairs, gap the distance to the nearest other Ritz value."""
    values = ritz.values
    found = []
    for i in chosen:
        others = np.delete(values, i)
        gap = float(np.min(np.abs(others - values[i]))) if len(others) else 0.0
        r = float(ritz.residuals[i])
        found.append(min(r, r * r / gap) if gap > 0.0 else r)
    return np.array(found)


def _resolved(ritz: Ritz, chosen: np.ndarray) -> bool:
    """Returns whether the neighbours of a single value at an end are settled enough for its gap to be one."""
    if len(chosen) != 1 or len(ritz.values) < 2:
        return False
    i = int(chosen[0])
    gaps = np.abs(ritz.values - ritz.values[i])
    gaps[i] = np.inf
    nearest = int(np.argmin(gaps))
    return bool(ritz.residuals[nearest] <= gaps[nearest] / 3.0)


class Hidden:
    """Whether an eigenvalue beyond the outermost Ritz value could have escaped the Krylov space of one start vector.

    If it exists, the start has at most the Christoffel function of the space there as its share in it. A random start
    has less than 1e-4 / n of an eigenvector once in 125 times. A gradient is taken to know the end of the spectrum
    where it has 1e-4 in the Ritz vector found there and n is above 10,000. A warm start sits on an eigenvector already,
    and what is hidden has to grow out of the noise mixed in.

    Args:
        krylov: the space.
        origin: of its start: "warm", "gradient" or "random".
        amplified: how far a warm start has to be amplified beyond the values found.
    """

    def __init__(self, krylov: Krylov, origin: str, amplified: float) -> None:
        self._krylov, self._origin, self._amplified = krylov, origin, amplified
        self._known = krylov.held == 1

    def forget(self) -> None:
        """After a restart the basis is no polynomial one any more, and what it could miss has long been found."""
        self._known = False

    def excluded(self, ritz: Ritz, outermost: int, tol: float) -> bool:
        """Returns whether nothing is hidden beyond Ritz value number `outermost`, moved out by `tol`."""
        krylov = self._krylov
        m = krylov.processed
        if not self._known or m != krylov.matvecs or krylov.held != m + 1:
            return True
        edge = float(ritz.values[outermost])
        crowded = int(np.sum(ritz.values * np.sign(edge) >= _NEAR * abs(edge))) > 1
        wanted = self._wanted(float(ritz.coefficients[0, outermost]) ** 2, crowded)
        x = edge + tol * abs(edge) * (1.0 if outermost == 0 else -1.0)
        t = krylov.projected
        total, last, now = 1.0, 0.0, 1.0
        for i in range(m):
            below = t[i, i - 1] * last if i else 0.0
            last, now = now, ((x - t[i, i]) * now - below) / t[i + 1, i]
            total += now * now
            if total >= wanted:
                return True
        return False

    def _wanted(self, share: float, crowded: bool) -> float:
        """Returns the reciprocal of the share that the start has at least of anything hidden."""
        n = self._krylov.operator.space.n
        if self._origin == "random" or share < _INFORMED:
            return n / _UNLIKELY
        certain = n / math.sqrt(_UNLIKELY)
        if self._origin == "warm":
            return min(self._amplified * (_CROWDED_WARM if crowded else 1.0), certain)
        if n <= _CAREFUL:
            return certain
        return _CROWD if crowded else 0.0
