"""The cause `schedule`: the learning rate went up, and with it the step."""

from __future__ import annotations

import math

import numpy as np

from foreshock.detect.planned import RATIO, RECORDS
from foreshock.detect.series import Series, near, series
from foreshock.diagnose.base import Cause
from foreshock.diagnose.edge import driven
from foreshock.diagnose.wording import number
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "schedule"
KINDS = frozenset({"spike", "divergence", "drift", "watch", "transient"})
NEEDS = ("lr",)
BEFORE = 50  # steps before the event in which a leap of the learning rate counts
STILL = 0.03  # score where it did not leap
LEAPT, FOURFOLD = 0.5, 0.85  # scores of a leap by 15 %, and by four times or more
ADVICE = ("Warm the learning rate up over more steps, or raise it by less.",)
CONTRADICTS = ("The same event in a rerun from before it in which the learning rate stays.",)


def schedule(run: Run, event: Event) -> Cause | None:
    """Returns how likely the schedule made the event; None where the learning rate was not recorded.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`.
    """
    here = near(run, event)
    rate = series(here, "lr" if "lr" in here else "lr/group0")
    before = rate.within(event.onset - BEFORE, event.onset)
    if not len(before):
        return None
    leap, at = _leap(rate, event)
    now = float(before.values[-1])
    if leap >= RATIO:
        score = LEAPT + (FOURFOLD - LEAPT) * min(1.0, math.log(leap / RATIO) / math.log(4 / RATIO))
        said = [f"The learning rate went up {leap:.3g}-fold within {RECORDS} records, to {number(now)} at step {at:,}."]
    else:
        score = STILL
        said = [f"The learning rate did not leap in the {BEFORE} steps before; it stood at {number(now)}."]
    found = driven(run, event)
    if found is not None and found.how.shares:
        share = found.share("learning rate")
        said += [found.passing, found.parts] if share > STILL else []
        score = max(score, found.strength * share)
    return Cause(NAME, score, tuple(filter(None, said)), CONTRADICTS, ADVICE, (), NEEDS)


def _leap(rate: Series, event: Event) -> tuple[float, int]:
    """Returns the largest growth of the learning rate within few records before the event, and the step it reached."""
    first, last = np.searchsorted(rate.steps, [event.onset - BEFORE, event.onset + 1])
    best, at = 1.0, int(rate.steps[last - 1])
    for place in range(max(first, 1), last):
        low = float(rate.values[max(0, place - RECORDS) : place].min())
        if low > 0 and rate.values[place] / low > best:
            best, at = float(rate.values[place]) / low, int(rate.steps[place])
    return best, at
