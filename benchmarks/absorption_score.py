"""What counts as a spike by absorption, how warnings are held against spikes, and how near two trainings are.

The label is that of Liu, Cao, Li and Zhou 2026, arXiv 2605.06152, as the reference configuration was measured: once the
loss has been below 1e-6, every run of steps with a loss above 1e-2 is a spike; runs closer than 100 steps are one.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise

FITTED, SPIKE, MERGED = 1e-6, 1e-2, 100
KINDS = ("absorbing", "inflating", "imminent")


def spikes(losses: Sequence[float]) -> list[tuple[int, int]]:
    """Returns first and last step of each spike, one loss a step from step 0; a loss that is not finite is high.

    >>> spikes([1.0, 1e-7, 1e-7, 0.5, 0.2, 1e-7] + [1e-8] * 200 + [2.0])
    [(3, 4), (206, 206)]
    """
    found: list[tuple[int, int]] = []
    fitted = False
    for step, loss in enumerate(losses):
        fitted = fitted or loss < FITTED
        if not fitted or loss <= SPIKE:
            continue
        if found and step - found[-1][1] <= MERGED:
            found[-1] = (found[-1][0], step)
        else:
            found.append((step, step))
    return found


@dataclass(frozen=True, slots=True)
class Warned:
    """The warnings of one training held against its spikes.

    Attributes:
        spikes: first step of each.
        first: kind -> step at which it was first raised.
        leads: kind -> steps from there to the first spike; absent where none came before it.
        later: spikes after the first.
        foretold: before how many of those a warning stood since the end of the spike before.
    """

    spikes: Sequence[int]
    first: Mapping[str, int]
    leads: Mapping[str, int]
    later: int
    foretold: int

    @property
    def lead(self) -> int | None:
        """Steps from the earliest warning of any kind to the first spike."""
        return max(self.leads.values(), default=None)


def warned(stood: Mapping[str, Sequence[tuple[int, float]]], losses: Sequence[float]) -> Warned:
    """Returns the score of a training from when warnings of each kind stood, (raised, end), by kind.

    >>> losses = [1e-7] * 500 + [1.0] * 3 + [1e-7] * 497 + [1.0]
    >>> score = warned({"absorbing": [(120, 480), (610, 900)], "imminent": [(400, 490)]}, losses)
    >>> score.leads, score.lead, score.later, score.foretold
    ({'absorbing': 380, 'imminent': 100}, 380, 1, 1)
    """
    found = spikes(losses)
    first = {kind: min(raised for raised, _ in times) for kind, times in stood.items() if times}
    leads = {kind: found[0][0] - step for kind, step in first.items() if found and step < found[0][0]}
    every = [time for times in stood.values() for time in times]
    foretold = sum(
        any(raised < spike[0] and end > before[1] for raised, end in every) for before, spike in pairwise(found)
    )
    return Warned([begin for begin, _ in found], first, leads, max(0, len(found) - 1), foretold)


@dataclass(frozen=True, slots=True)
class Nearness:
    """How far apart the losses of two trainings are, relative to the second's.

    Attributes:
        typical: median over the steps.
        most: largest over the steps at which neither has spiked.
        last: at the last step.
    """

    typical: float
    most: float
    last: float


def nearness(losses: Sequence[float], reference: Sequence[float]) -> Nearness:
    """Returns how near a training's losses are to those of the same training in float64.

    >>> nearness([1.0, 0.51, 0.2], [1.0, 0.5, 0.2]).most
    0.02
    """
    apart = [round(abs(a / b - 1), 12) if b > 0 else math.inf for a, b in zip(losses, reference, strict=True)]
    return Nearness(statistics.median(apart), max(apart), apart[-1])
