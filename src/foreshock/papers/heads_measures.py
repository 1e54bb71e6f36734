"""What is read off a boundary: how high the loss begins, when it is back, and what old and new classes know by then."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.papers.heads_training import Boundary, Trace

__all__ = ["COLUMNS", "Reading", "readings", "row", "steps_to", "summary"]

SOON = 20  # steps after a boundary in which the loss may still peak
MEAN, MARGIN = 5, 1.25  # recovered: the mean of 5 steps below 1.25 of the loss at which random rows end
ENDS = 10  # last losses of a task whose mean is its final loss
KNOWN = 0.8  # accuracy of new classes
CONVERGED = 0.95  # of the final accuracy of random rows


COLUMNS = (
    "setting", "new rows", "seed", "random", "first", "peak", "new@0", "old@0", "old before", "to .8", "recovered",
    "final new", "final old", "raised", "seconds",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Reading:
    """One boundary in numbers; steps are NaN where it never came to it.

    Attributes:
        first, random: loss of the first batch, and with random rows in its place.
        before: mean loss of the 50 steps before.
        peak: highest loss of the first 20 steps.
        old_before: test accuracy of the old classes before the boundary.
        old, new: after it, before any training.
        known: steps until the new classes are known to .8.
        converged: ... to .95 of what random rows make of them in the end.
        level: steps until all classes together are known as they are by random rows in the end.
        recovered: steps until the loss is below 1.25 of the final loss of random rows.
        final_old, final_new: accuracies at the end of the task.
        raised: whether a detector raised an event.
        seconds: that the choice of rows took.
    """

    first: float
    random: float
    before: float
    peak: float
    old_before: float
    old: float
    new: float
    known: float
    converged: float
    level: float
    recovered: float
    final_old: float
    final_new: float
    raised: bool
    seconds: float

    @property
    def ratio(self) -> float:
        """First loss over that of random rows on the same batch."""
        return self.first / self.random

    @property
    def kept(self) -> float:
        """Share of the old classes' accuracy that is left before any training."""
        return self.old / self.old_before if self.old_before else math.nan


def readings(trace: Trace, random: Trace) -> list[Reading]:
    """Returns what each boundary of a training shows, beside the training with random rows."""
    return [_read(one, other) for one, other in zip(trace.boundaries, random.boundaries, strict=True)]


def _read(one: Boundary, random: Boundary) -> Reading:
    target = MARGIN * float(random.losses[-ENDS:].mean())
    everything = _together(one)
    return Reading(
        one.first, one.random, one.before, float(one.losses[:SOON].max()), one.old_before, float(one.old[0]),
        float(one.new_accuracy[0]), steps_to(one.steps, one.new_accuracy, KNOWN),
        steps_to(one.steps, one.new_accuracy, CONVERGED * _end(random.new_accuracy)),
        steps_to(one.steps, everything, _end(_together(random))), _recovered(one.losses, target),
        _end(one.old), _end(one.new_accuracy), any(kind != "drift" for kind in one.events), one.seconds,
    )  # fmt: skip


def _together(one: Boundary) -> np.ndarray:
    """Returns the accuracy over all test examples, old and new."""
    return one.old * (1 - one.share) + one.new_accuracy * one.share


def _end(values: Sequence[float] | np.ndarray) -> float:
    return float(np.mean(values[-3:]))


def steps_to(steps: Sequence[int] | np.ndarray, values: Sequence[float] | np.ndarray, level: float) -> float:
    """Returns the first step at which a value reaches a level; NaN if none does.

    >>> steps_to([0, 5, 9], [0.1, 0.8, 0.7], 0.8), steps_to([0], [0.1], 0.8)
    (5.0, nan)
    """
    there = np.flatnonzero(np.asarray(values) >= level)
    return float(steps[there[0]]) if len(there) else math.nan


def _recovered(losses: np.ndarray, target: float) -> float:
    """Returns after how many steps the mean of the last five losses is below a target; NaN if it never is."""
    if len(losses) < MEAN:
        return math.nan
    smooth = np.convolve(losses, np.ones(MEAN) / MEAN, "valid")
    there = np.flatnonzero(smooth < target)
    return float(there[0] + MEAN) if len(there) else math.nan


def summary(each: Sequence[Reading], random: Sequence[Reading]) -> dict[str, float]:
    """Returns the numbers of one training, over its boundaries: the worst where something must hold, else the mean.

    Steps are told as how many times fewer they are than with random rows, the lowest and the mean over boundaries.
    """
    numbers = {
        "first over random": max(one.ratio for one in each),
        "first over before": max(one.first / one.before for one in each),
        "peak over random": max(one.peak / other.peak for one, other in zip(each, random, strict=True)),
        "peak over first": max(one.peak / one.first for one in each),
        "new@0": float(np.mean([one.new for one in each])),
        "old@0": float(np.mean([one.old for one in each])),
        "kept": min(one.kept for one in each),
        "final old": float(np.mean([one.final_old for one in each])),
        "final new": float(np.mean([one.final_new for one in each])),
        "raised": float(sum(one.raised for one in each)),
    }
    for name in ("old", "new"):
        ends = [numbers[f"final {name}"], float(np.mean([getattr(other, f"final_{name}") for other in random]))]
        numbers[f"final {name} over random"] = ends[0] - ends[1]
    for name in ("known", "converged", "level", "recovered"):
        numbers[f"{name}: fewer steps"] = _times(
            [getattr(one, name) for one in each], [getattr(other, name) for other in random]
        )
    return numbers


def _times(steps: Sequence[float], random: Sequence[float]) -> float:
    """Returns how many times fewer steps were taken, over all boundaries together; 0 where one never came to it.

    >>> _times([0.0, 8.0], [18.0, 8.0]), _times([math.nan], [5.0])
    (3.0, 0.0)
    """
    pairs = [(one, other) for one, other in zip(steps, random, strict=True) if not math.isnan(other)]
    if not pairs:
        return math.nan
    if any(math.isnan(one) for one, _ in pairs):
        return 0.0
    return (sum(other for _, other in pairs) + 1) / (sum(one for one, _ in pairs) + 1)


def row(trace: Trace, each: Sequence[Reading], title: str) -> tuple[str, ...]:
    """Returns the row of a training in the table: means over its boundaries."""
    def mean(name: str, form: str) -> str:
        values = [getattr(one, name) for one in each]
        return "never" if any(math.isnan(value) for value in values) else format(float(np.mean(values)), form)

    return (
        trace.setting.title, title, str(trace.seed), mean("random", ".3g"), mean("first", ".3g"), mean("peak", ".3g"),
        mean("new", ".3f"), mean("old", ".3f"), mean("old_before", ".3f"), mean("known", ".0f"),
        mean("recovered", ".0f"), mean("final_new", ".3f"), mean("final_old", ".3f"),
        str(sum(one.raised for one in each)), f"{trace.seconds:.1f}",
    )  # fmt: skip

