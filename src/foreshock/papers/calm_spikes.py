"""Spikes of a loss by the calm rule, and sustained crossings: what a reproduction counts, and what it counts against.

A spike rises out of calm. What rings after its peak belongs to it, which a rule that looks at rises alone would count
as spikes of their own: of a training with 31 spikes such a rule made 86. It looks ahead to the end of each event; for
live use there are the detectors of `foreshock.detect`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Match", "Spike", "match", "runs_above", "spikes"]

CALM_STEPS = 25
CALM_RATIO = 1.5

Run = tuple[int, int]
"""First and last place of a run of values above an edge."""


class Spike(NamedTuple):
    """A rise out of calm, in steps: of the lowest loss before it, of the trigger, of the peak, and of calm again."""

    baseline: int
    trigger: int
    peak: int
    end: int


def spikes(losses: npt.ArrayLike, factor: float = 1.5) -> list[Spike]:
    """Returns the spikes of a loss that rise to `factor` times the lowest value since calm began.

    Calm: the last 25 losses lie within a factor of 1.5. Baseline: the lowest loss since calm began, its window
    included. Trigger: the first loss at `factor` times that, or one that is not finite. Peak: the largest until calm
    returns, which is the end; the last step where it does not return.

    Args:
        losses: (n,) positive numbers; NaN and infinity count as higher than anything.
        factor: of the rise.

    >>> rise = [1.0] * 40 + [2.0, 4.0, 9.0, 3.0] + [1.0] * 40
    >>> spikes(rise)
    [Spike(baseline=0, trigger=40, peak=42, end=68)]
    """
    values = np.nan_to_num(np.asarray(losses, dtype=np.float64), nan=np.inf)
    found: list[Spike] = []
    calm_since, baseline, trigger = -1, -1, -1
    for step, value in enumerate(values):
        if baseline >= 0 and trigger < 0:
            if value < values[baseline]:
                baseline = step
            elif not value < factor * values[baseline]:
                trigger = step
        if (baseline < 0 or trigger >= 0) and _calm(values[: step + 1]):
            if trigger >= 0:
                found.append(_spike(values, baseline, trigger, step))
            calm_since, trigger = step - CALM_STEPS + 1, -1
            baseline = calm_since + int(np.argmin(values[calm_since : step + 1]))
    if trigger >= 0:
        found.append(_spike(values, baseline, trigger, len(values) - 1))
    return found


def _calm(values: npt.NDArray[np.float64]) -> bool:
    if len(values) < CALM_STEPS:
        return False
    last = values[-CALM_STEPS:]
    return bool(last.max() <= CALM_RATIO * last.min() < np.inf)


def _spike(values: npt.NDArray[np.float64], baseline: int, trigger: int, end: int) -> Spike:
    return Spike(baseline, trigger, trigger + int(np.argmax(values[trigger : end + 1])), end)


def runs_above(values: npt.ArrayLike, length: int = 3, edge: float = 1.0) -> list[Run]:
    """Returns the runs of at least `length` values in a row above the edge, as (first, last); NaN is not above.

    >>> runs_above([0.9, 1.1, 1.2, 1.3, 0.8, 1.4, 1.1, 0.7])
    [(1, 3)]
    """
    above = np.concatenate([[False], np.asarray(values, dtype=np.float64) > edge, [False]])
    changes = np.flatnonzero(above[1:] != above[:-1])
    return [
        (int(first), int(after) - 1)
        for first, after in zip(changes[::2], changes[1::2], strict=True)
        if after - first >= length
    ]


class Match(NamedTuple):
    """Crossings against spikes.

    Attributes:
        pairs: each spike that some run announces, with the first such run.
        missed: spikes without one.
        alone: runs without a spike.
    """

    pairs: list[tuple[Spike, Run]]
    missed: list[Spike]
    alone: list[Run]

    @property
    def recall(self) -> float:
        """Share of the spikes that are announced; NaN without spikes."""
        spikes = len(self.pairs) + len(self.missed)
        return len(self.pairs) / spikes if spikes else float("nan")

    @property
    def precision(self) -> float:
        """Share of the announcements that came true, by spikes announced and runs alone; NaN without runs."""
        announced = len(self.pairs) + len(self.alone)
        return len(self.pairs) / announced if announced else float("nan")


def match(found: Sequence[Spike], runs: Sequence[Run]) -> Match:
    """Returns which runs announce which spikes: a run that has begun by the peak and has not ended by the baseline.

    Each run announces one spike, the first: a signal that is always above its edge says nothing of those that follow.
    What lies between a spike's trigger and its end belongs to it: runs while it rings are neither right nor wrong.

    >>> match([Spike(10, 14, 20, 50)], [(5, 19), (30, 34), (70, 75)])
    Match(pairs=[(Spike(baseline=10, trigger=14, peak=20, end=50), (5, 19))], missed=[], alone=[(70, 75)])
    """
    pairs: list[tuple[Spike, Run]] = []
    missed, left = [], list(runs)
    for spike in found:
        announcing = next((run for run in left if run[0] <= spike.peak and run[1] >= spike.baseline), None)
        if announcing is None:
            missed.append(spike)
        else:
            pairs.append((spike, announcing))
            left.remove(announcing)
    alone = [run for run in left if not any(run[0] <= spike.end and run[1] >= spike.baseline for spike in found)]
    return Match(pairs, missed, alone)
