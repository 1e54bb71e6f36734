"""How an event of the curvature family came about: when chi passed 1, how long before the loss, and who drove it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal
from weakref import WeakKeyDictionary

import numpy as np

from foreshock.detect.landmarks import SUSTAINED, Landmarks, below_at
from foreshock.detect.second_moment import shares
from foreshock.detect.series import Series, near, readings, series
from foreshock.detect.stages import Stages, stages
from foreshock.diagnose.growth import Growth, growth
from foreshock.run.event import Event, family
from foreshock.run.run import Run

Verdict = Literal["preconditioner", "landscape", "learning rate", "mixed", "unexplained", "not split"]
KINDS = ("watch", "imminent", "transient", "spike")
MOST = 0.6  # share of the growth of ln chi from which one part is to blame; with less it is a mixture
NEAR = 100  # steps before an unexplained rise whose readings are quoted
BALANCE = 10.0  # times the growth that a part may be: beyond it they cancelled, and shares of the rest say nothing


@dataclass(frozen=True, slots=True)
class Approach:
    """The approach to the edge of stability before one event.

    Attributes:
        stages: the stages of the event.
        verdict: "preconditioner" (denominators and momentum), "landscape" or "learning rate" where one of them made
            three fifths of the growth of ln chi up to the crossing, else "mixed"; "not split" where the run does not
            tell, or the parts cancelled; "unexplained" where chi stayed below 1: noise, data or precision.
        shares: part -> share of the growth, for "preconditioner", "landscape", "learning rate"; above 1 where the
            others worked against it; empty where it was not split.
        growth: the split over the approach; None where it is not known.
        chi_begin: chi where the approach begins.
        chi_max: largest chi of the event.
        hessian: raw lambda_max(H) at the first and the last reading from the beginning to the peak; None where there
            are not two.
        tensor: the one with the largest share of the unstable direction.
        tensor_share: that share, at the edge.
        lead_turn: steps from the crossing to the turn of the loss.
        lead_rise: steps from the crossing to the loss having risen 1.5 times.
        lead_peak: steps from the crossing to the peak.
        warned: steps from the alarm to the rise of 1.5; None where the event is no alarm, or the loss did not rise.
    """

    stages: Stages
    verdict: Verdict
    shares: Mapping[str, float]
    growth: Growth | None
    chi_begin: float
    chi_max: float
    hessian: tuple[float, float] | None
    tensor: str | None
    tensor_share: float
    lead_turn: int | None
    lead_rise: int | None
    lead_peak: int | None
    warned: int | None

    @property
    def marks(self) -> Landmarks:
        """The corners of the event."""
        return self.stages.marks


def approach(run: Run, event: Event) -> Approach | None:
    """Returns the approach before an event; None where chi was not read close to it, or it is of another kind.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent (of `chi_gradient`), transient or spike.
    """
    if event.kind not in KINDS or family(event) == "softmax":
        return None
    run = near(run, event)
    known = _FOUND.get(run)
    if known is None or known[0] != event:
        known = _FOUND[run] = (event, _approach(run, event))
    return known[1]


_FOUND: WeakKeyDictionary[Run, tuple[Event, Approach | None]] = WeakKeyDictionary()  # several causes ask for the last


def _approach(run: Run, event: Event) -> Approach | None:
    found = stages(run, event)
    marks, chi = found.marks, readings(run)
    if marks.crossing is None:
        around = chi.within(event.onset - NEAR, max(event.peak, event.onset))
        if np.sum(around.values >= 1) >= SUSTAINED or not below_at(run, chi, marks.turn, marks.peak):
            return None
        return _made(run, found, "unexplained", None, around, event)
    over = marks.down if marks.down is not None else marks.last
    split = growth(run, marks.begin, marks.crossing)
    if split is None or not split.total > 0:  # nothing was read on the way up: what followed
        split = growth(run, marks.crossing, marks.turn or marks.last)
    return _made(run, found, _verdict(split), split, chi.within(marks.begin, over), event)


def _verdict(split: Growth | None) -> Verdict:
    if split is None or not split.total > 0 or max(map(abs, split.parts.values())) > BALANCE * split.total:
        return "not split"
    for name, parts in _BLAMED.items():
        if split.share(*parts) >= MOST:
            return name
    return "mixed"


_BLAMED: Mapping[Verdict, tuple[str, ...]] = {
    "learning rate": ("learning rate",), "preconditioner": ("denominator", "momentum"), "landscape": ("landscape",),
}  # fmt: skip


def _made(run: Run, found: Stages, verdict: Verdict, split: Growth | None, chi: Series, event: Event) -> Approach:
    marks = found.marks
    crossing = marks.crossing
    held = shares(run, crossing, crossing if marks.turn is None else marks.turn) if crossing is not None else {}
    known = split is not None and verdict not in ("unexplained", "not split")
    parts = {name: split.share(*names) for name, names in _BLAMED.items()} if known and split is not None else {}

    def lead(to: int | None) -> int | None:
        return None if to is None or crossing is None else to - crossing

    alarm = event.kind in ("watch", "imminent")
    return Approach(
        found, verdict, {str(name): share for name, share in parts.items()}, split,
        float(chi.values[0]) if len(chi) else math.nan, float(chi.values.max()) if len(chi) else math.nan,
        _hessian(run, found), marks.tensor, held.get(marks.tensor or "", math.nan),
        lead(marks.turn), lead(marks.risen), lead(marks.peak),
        marks.risen - event.raised if alarm and marks.risen is not None else None,
    )  # fmt: skip


def _hessian(run: Run, found: Stages) -> tuple[float, float] | None:
    """Returns lambda_max(H) at both ends: measured, or the sharpness where nothing is preconditioned."""
    marks = found.marks
    name = "hessian_top" if found.family == "adam" else "sharpness"
    values = series(run, name).within(marks.begin, marks.peak if marks.peak is not None else marks.last).values
    values = values[np.isfinite(values)]
    return (float(values[0]), float(values[-1])) if len(values) > 1 else None
