"""What became of the attempts that an event is made of: taken, taken in part, refused, or undone by a rollback.

A spike that a guard refused happened in the data: it stays an event. But the training did not take that step, and
whoever reads of it should know.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from foreshock.report.wording import count
from foreshock.run import Run
from foreshock.run.action import ClipUpdate, Scale
from foreshock.run.event import Event

Key = tuple[str, str, int]
_HIGH = 0.5  # share of an event's height from which an attempt counts as part of it,
_CLEAR = 8.0  # or so many scales of the noise before it, which ordinary attempts in between do not reach


@dataclass(frozen=True, slots=True)
class Fate:
    """What became of an event's attempts.

    Attributes:
        high: attempts that stood out: clear of the noise, or not finite.
        refused: those of them that were refused before their update.
        undone: those of them that were taken, and undone by a rollback.
        softened: those of them that were taken with their update scaled or clipped.
    """

    high: int
    refused: int
    undone: int
    softened: int = 0

    @property
    def spared(self) -> bool:
        """Whether the training took none of them, or was rolled back to before them."""
        return self.refused + self.undone == self.high

    @property
    def short(self) -> str:
        """What became of them, in a word or two."""
        if self.spared:
            return "rolled back" if self.undone else "refused"
        lost = self.refused + self.undone
        return f"{lost:,} of {self.high:,} refused" if lost else "taken in part"

    @property
    def sentence(self) -> str:
        """What became of them, in a clause."""
        if not self.spared:
            lost = self.refused + self.undone
            if not lost and self.high == 1:
                return "taken in part: its update was scaled or clipped"
            parts = {"refused": lost, "taken in part": self.softened, "taken": self.high - lost - self.softened}
            (how, n), *rest = [(how, n) for how, n in parts.items() if n]
            return ", ".join([f"{n:,} of {count(self.high, 'step')} {how}", *(f"{n:,} {how}" for how, n in rest)])
        if self.undone:
            left = f", {self.refused:,} more refused" if self.refused else ""
            return f"rolled back: {count(self.undone, 'step')} undone{left}"
        if self.high == 1:
            return "refused: the training did not take this step"
        return f"refused: the training took none of these {self.high:,} steps"


def fates(run: Run, events: Sequence[Event]) -> Mapping[Key, Fate]:
    """Returns what became of the attempts of each event, by its key, of those events where a guard did something.

    Args:
        run: the run.
        events: its events.
    """
    taken = run.taken
    softened = np.array([each.step for each in run.actions if isinstance(each, Scale | ClipUpdate)], np.int64)
    if taken.all() and not len(softened):
        return {}
    steps = run.steps
    soft = np.isin(steps, softened) & taken
    skipped = run["skipped"] > 0 if "skipped" in run else np.zeros(len(steps), np.bool_)
    columns = {name: run[name] for name in {event.signal for event in events} if name in run}
    found = {}
    for event in events:
        last = steps[-1] if event.end is None else event.end
        part = slice(*np.searchsorted(steps, [event.onset, last + 1]))
        if taken[part].all() and not soft[part].any():
            continue
        high = _high(event, columns[event.signal][part]) if event.signal in columns else np.ones_like(taken[part])
        refused, undone = high & skipped[part], high & ~taken[part] & ~skipped[part]
        counts = [int(np.count_nonzero(each)) for each in (high, refused, undone, high & soft[part])]
        if any(counts[1:]):
            found[event.key] = Fate(*counts)
    return found


def spared(run: Run, events: Sequence[Event]) -> frozenset[Key]:
    """Returns the keys of the events that the training was spared."""
    return frozenset(key for key, fate in fates(run, events).items() if fate.spared)


def _high(event: Event, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Returns which values belong to the event: those that stand out, not those in between."""
    high = np.ones(len(values), np.bool_)
    baseline = event.data.get("baseline")
    if event.kind == "nonfinite":
        high = ~np.isfinite(values)
    elif isinstance(baseline, int | float) and np.isfinite(event.height):
        scale = event.data.get("scale")
        least = _HIGH * abs(event.height)
        least = min(least, _CLEAR * scale) if isinstance(scale, int | float) and scale > 0 else least
        with np.errstate(invalid="ignore"):
            high = ~((values - baseline) * np.sign(event.height) < least)
    return high
