"""Signals of a run around an event, as those who look back at it read them."""

from __future__ import annotations

from dataclasses import dataclass
from weakref import WeakKeyDictionary

import numpy as np
from numpy.typing import NDArray

from foreshock.run.event import Event
from foreshock.run.run import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

BACK, AHEAD = 20_000, 2_000  # steps before and after an event that are looked at, so that long runs cost no more


@dataclass(frozen=True, slots=True)
class Series:
    """One measured signal: (n,) steps, increasing, and its finite values there."""

    steps: Ints
    values: Floats

    def at(self, step: int) -> float:
        """Returns the last value measured up to a step; NaN where there is none."""
        place = int(np.searchsorted(self.steps, step, side="right")) - 1
        return float(self.values[place]) if place >= 0 else float("nan")

    def sampled(self, steps: Ints) -> Floats:
        """Returns the last values measured up to each of these steps; NaN where there is none."""
        if len(self.steps) == 0:
            return np.full(len(steps), np.nan)
        places = np.searchsorted(self.steps, steps, side="right") - 1
        result: Floats = np.where(places >= 0, self.values[np.maximum(places, 0)], np.nan)
        return result

    def within(self, first: int, last: int) -> Series:
        """Returns the part with first <= step <= last."""
        part = slice(*np.searchsorted(self.steps, [first, last + 1]))
        return Series(self.steps[part], self.values[part])

    def __len__(self) -> int:
        return len(self.steps)


_READ: WeakKeyDictionary[Run, dict[str, Series]] = WeakKeyDictionary()  # a story asks for the same signals many times


def series(run: Run, name: str) -> Series:
    """Returns the finite values of a signal; empty where the run does not have it."""
    kept = _READ.setdefault(run, {})
    if name not in kept:
        steps, values = run.measured(name) if name in run else (np.empty(0, np.int64), np.empty(0))
        known = np.isfinite(values)
        kept[name] = Series(steps[known], values[known])
    return kept[name]


def readings(run: Run) -> Series:
    """Returns the readings of chi; none where it is a formality, of steps that are bounded whatever the gradient."""
    formal = series(run, "chi_formal")
    return series(run, "chi") if not len(formal) or formal.values.max() < 1 else series(run, "")


_PARTS: WeakKeyDictionary[Run, tuple[float, float, Run]] = WeakKeyDictionary()  # the last part asked for


def near(run: Run, event: Event) -> Run:
    """Returns the part of a long run that an event's story is read from; the same object for the same event again."""
    past = float("inf") if event.end is None else max(event.end, event.peak) + AHEAD
    start, steps = event.onset - BACK, run.steps
    if len(steps) == 0 or (steps[0] >= start and steps[-1] < past):
        return run
    kept = _PARTS.get(run)
    if kept is None or kept[:2] != (start, past):
        kept = _PARTS[run] = (start, past, run.window(start, past))
    return kept[2]
