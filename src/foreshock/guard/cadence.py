"""How far apart snapshots are, and which of them leave first: a cost and an age, nothing else."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Mapping, Sequence
from typing import Any

USUAL = 20
"""Steps between two snapshots. That of a small GPT costs 4 % of a step on a CPU, so every 20 take 0.2 % of the time; a
ring of six then reaches some 600 steps back, beyond the 100 that PaLM went back (Chowdhery et al. 2022, arXiv
2204.02311, section 5.1)."""
DISTANCES = (20, 50, 100, 200)
"""What a measured distance is rounded up to; what is dearer still is taken 200 steps apart."""
IN_A_GROUP = 50
"""Steps between snapshots where this is one rank of several: a measurement would differ from rank to rank."""
MEASURED = 4
"""Snapshots, `USUAL` steps apart, after which the distance is fixed."""
BELIEVED = 3.0
"""How many times over the share a measurement must be to count: clocks differ from run to run, and runs should not."""
_WIDEST = 3.0
"""Ratio of ages that two neighbours may have; with 4 the ring of 6 reaches twice as far back and has larger holes."""
_STEPS = 200
"""Intervals that the time of a step is the median of."""


class Cadence:
    """Says when a snapshot is due.

    The first one is due at the first step asked about, the next three `USUAL` steps apart. Where the cheapest of them
    took more than `BELIEVED` times the share of the time of the steps between, the distance becomes the least of
    `DISTANCES` at which they take no more than the share itself; else it stays. Then it is fixed for good, and part of
    the state, so a resumed run keeps the distance it had.

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
        return self.last is None or step >= self.last + (self.distance or USUAL)

    def took(self, step: int, cost: float | None) -> None:
        """Counts a snapshot of so many seconds, or the attempt at one (None)."""
        self.last = step
        if self.distance is not None or cost is None:
            return
        self.costs.append(cost)
        if self._seen is not None:
            self._seen = (self._seen[0], time.perf_counter())  # the next interval holds no snapshot
        if len(self.costs) >= MEASURED and self.pace:
            self.distance = fixed(min(self.costs[1:]), statistics.median(self.pace), self.share)

    def state_dict(self) -> dict[str, Any]:
        return {"distance": self.distance, "last": self.last, "costs": list(self.costs), "pace": list(self.pace)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.distance = self.every if self.every is not None else state["distance"]
        self.last, self.costs, self.pace = state["last"], list(state["costs"]), list(state["pace"])
        self._seen = None


def fixed(cost: float, step: float, share: float) -> int:
    """Returns the steps between snapshots that cost so many seconds, of steps of so many, for a share of the time.

    >>> fixed(0.005, 0.1, 0.01), fixed(0.05, 0.1, 0.01), fixed(0.07, 0.1, 0.01), fixed(9.0, 0.1, 0.01)
    (20, 20, 100, 200)
    """
    if cost <= BELIEVED * share * step * USUAL:
        return USUAL
    wanted = cost / (share * step) if share * step > 0 else math.inf
    return next((distance for distance in DISTANCES if distance >= wanted), DISTANCES[-1])


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
