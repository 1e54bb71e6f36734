"""How far apart snapshots are, and which of them leave first: a cost and an age, nothing else."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

NEAREST, FARTHEST = 10, 200
"""Steps between two snapshots: at least, so that a cheap one does not crowd the ring; at most, so that there is one
from about 100 steps before a spike, where PaLM restarted from (Chowdhery et al. 2022, arXiv 2204.02311, 5.1)."""
DISTANCES = (10, 20, 50, 100, 200)
"""What a measured distance is rounded up to, so that noise of the clock seldom makes two runs differ."""
IN_A_GROUP = 100
"""Steps between snapshots where this is one rank of several: a measurement would differ from rank to rank."""
MEASURED = 4
"""Snapshots, NEAREST steps apart, after which the distance is fixed."""
_WIDEST = 3.0
"""Ratio of ages that two neighbours may have; with 4 the ring of 6 reaches twice as far back and has larger holes."""
_STEPS = 200
"""Intervals that the time of a step is the median of."""


class Cadence:
    """Says when a snapshot is due.

    The first one is due at the first step asked about, the next three `NEAREST` steps apart. What they cost, beside
    the time of the steps between them, then fixes the distance for good: the least of `DISTANCES` at which snapshots
    take no more than a share of the time. The state has it, so a resumed run keeps the distance it had.

    Args:
        every: steps from one snapshot to the next; None measures.
        share: of the wall time that snapshots may take.
    """

    def __init__(self, every: int | None, share: float) -> None:
        self.every, self.share = every, share
        self.distance: int | None = every
        self.last: int | None = None
        self.costs: list[float] = []
        self.pace: list[float] = []
        self._seen: tuple[int, float] | None = None

    def due(self, step: int) -> bool:
        """Returns whether a snapshot is due at a step; call it once a step."""
        now = time.perf_counter()
        if self.distance is None:
            if self._seen is not None and step > self._seen[0]:
                self.pace = [*self.pace[-_STEPS:], (now - self._seen[1]) / (step - self._seen[0])]
            self._seen = (step, now)
        return self.last is None or step >= self.last + (self.distance or NEAREST)

    def took(self, step: int, cost: float | None) -> None:
        """Counts a snapshot of so many seconds, or the attempt at one (None)."""
        self.last = step
        if self.distance is not None or cost is None:
            return
        self.costs.append(cost)
        if self._seen is not None:
            self._seen = (self._seen[0], time.perf_counter())  # the next interval holds no snapshot
        if len(self.costs) >= MEASURED and self.pace:
            self.distance = affordable(statistics.median(self.costs[1:]), statistics.median(self.pace), self.share)

    def state_dict(self) -> dict[str, Any]:
        return {"distance": self.distance, "last": self.last, "costs": list(self.costs), "pace": list(self.pace)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.distance = self.every if self.every is not None else state["distance"]
        self.last, self.costs, self.pace = state["last"], list(state["costs"]), list(state["pace"])
        self._seen = None


def affordable(cost: float, step: float, share: float) -> int:
    """Returns the steps between snapshots that cost so many seconds, of steps of so many, for a share of the time.

    >>> affordable(0.005, 0.1, 0.01), affordable(0.03, 0.1, 0.01), affordable(9.0, 0.1, 0.01)
    (10, 50, 200)
    """
    wanted = cost / (share * step) if share * step > 0 else math.inf
    return next((distance for distance in DISTANCES if distance >= wanted), FARTHEST)


def spare(steps: Sequence[int], unit: int) -> int:
    """Returns which of some steps, ascending, is to be forgotten; never the last one.

    Ages are counted from one `unit` after the last. Of the steps between the oldest and the last the one goes whose
    older and younger neighbours are, by the ratio of their ages, the closest; where all are further apart than 3, the
    oldest goes. So recent steps stay dense, older ones end up at distances that about double, and the oldest is about
    2^(n-1) units old for n of them.

    >>> kept = []
    >>> for step in range(0, 2000, 10):
    ...     kept.append(step)
    ...     if len(kept) > 6:
    ...         kept.remove(spare(kept, 10))
    >>> [1990 - step for step in kept]
    [300, 120, 60, 30, 10, 0]
    """
    if len(steps) < 3:
        return steps[0]
    ages = [steps[-1] - step + unit for step in steps]
    ratio, at = min((ages[i - 1] / ages[i + 1], -i) for i in range(1, len(steps) - 1))
    return steps[-at] if ratio <= _WIDEST else steps[0]
