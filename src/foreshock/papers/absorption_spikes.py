"""The counting rule of the softmax-absorption experiments: a loss that was all but zero and is not any more."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foreshock.papers.calm_spikes import runs_above

__all__ = ["Relapse", "relapses"]

FITTED = 1e-6  # a loss below which the data are fitted
LOST = 1e-2  # and one above which the fit is lost again
APART = 100  # steps; what comes sooner belongs to the same spike


class Relapse(NamedTuple):
    """A spike, in steps: the first with the fit lost, the highest, and the last."""

    first: int
    peak: int
    last: int


def relapses(losses: npt.ArrayLike, lost: float = LOST) -> list[Relapse]:
    """Returns the spikes of a loss: after it was below 1e-6 for the first time, every run of steps above `lost`.

    Runs less than 100 steps apart are one spike. A loss that never fits has none, and a slow rise counts as much as a
    sudden one: the rule is blind to form, so that counts do not depend on it.

    Args:
        losses: (n,) one a step; NaN and infinity count as higher than anything.
        lost: the loss above which a spike is one; 1e-2 is the rule of all counts.

    >>> fitted = [1.0, 1e-7, 1e-8]
    >>> relapses([*fitted, 0.5, 3.0, 1e-3, 0.2, *[1e-8] * 100, 0.5])
    [Relapse(first=3, peak=4, last=6), Relapse(first=107, peak=107, last=107)]
    """
    values = np.nan_to_num(np.asarray(losses, dtype=np.float64), nan=np.inf)
    fitted = np.flatnonzero(values < FITTED)
    found: list[Relapse] = []
    for first, last in runs_above(values, 1, edge=lost):
        if not len(fitted) or first < fitted[0]:
            continue
        if found and first - found[-1].last < APART:
            first = found.pop().first
        found.append(Relapse(first, first + int(np.argmax(values[first : last + 1])), last))
    return found
