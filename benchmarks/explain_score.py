"""How well causes are named: the event of a planted run, its diagnosis with all that the run has or less, tallies."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import foreshock
from foreshock.run import Event, Run

KINDS = ("spike", "divergence", "nonfinite")  # of events that are explained
PART = "part-"  # of the name of a directory whose run is not whole
NAMES = (
    "landscape", "preconditioner", "update_burst", "softmax_absorption", "outlier_batch", "schedule", "cold_start",
    "nonfinite", "not_reproducible", "unexplained",
)  # fmt: skip
# What a diagnosis gets to see; None is all that a monitor as it comes has recorded.
VIEWS: dict[str, tuple[str, ...] | None] = {
    "default monitor": None, "loss, gradient norm, learning rate": ("loss", "grad_norm", "lr"), "loss alone": ("loss",),
}  # fmt: skip
BINS = (0.0, 0.15, 0.3, 0.5, 0.7, 0.85, 0.95, 1.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """One diagnosis of one planted run.

    Attributes:
        name: of the run.
        planted, found: causes; the likeliest one for `found`.
        scores: of every cause that was judged.
    """

    name: str
    planted: str
    found: str
    scores: dict[str, float]

    @property
    def right(self) -> bool:
        return self.planted == self.found


def the_event(run: Run) -> Event | None:
    """Returns the event that the plant of a run has made; None where there is none."""
    planted = run.meta["planted"]
    if "event" in planted:
        return next((each for each in run.events if list(each.key) == planted["event"]), None)
    return first_event(run, planted["at"])


def first_event(run: Run, at: int) -> Event | None:
    """Returns the first event of the loss raised from a step on; None if there is none, or one was open by then."""
    for event in run.events:
        if event.kind in KINDS and event.raised >= at:
            return event
        if event.kind in KINDS and (event.end is None or event.end >= at - 5):
            return None
    return None


def planted_runs(folder: Path) -> list[Run]:
    """Returns the planted runs of a folder, by name."""
    return [Run.load(place) for place in sorted(folder.iterdir()) if place.is_dir() and not place.name.startswith(PART)]


def judged(run: Run, view: Sequence[str] | None = None, *, proven: bool = False) -> Verdict | None:
    """Returns the diagnosis of a run's event.

    Args:
        run: as it was recorded.
        view: the signals that are left; None for all, with notes and what is kept beside.
        proven: whether the experiments that are kept with the run count.
    """
    event = the_event(run)
    if event is None:
        return None
    shown = run if view is None else cut(run, view)
    kept = run.findings
    if not proven:
        shown._found = []  # a run as it is before anybody has experimented
    try:
        diagnosis = foreshock.diagnose(shown, event)
    finally:
        run._found = kept
    scores = {cause.name: cause.score for cause in (*diagnosis.causes, *diagnosis.ruled_out)}
    return Verdict(Path(run.path or "").name, run.meta["planted"]["cause"], diagnosis.best.name, scores)


def cut(run: Run, view: Sequence[str]) -> Run:
    """Returns a run with few signals, as an importer of a log would give it."""
    columns = [name for name in view if name in run]
    rows = {name: run[name] for name in columns}
    return Run.from_arrays({"step": run.steps, **rows})


def confusion(verdicts: Iterable[Verdict]) -> dict[str, dict[str, int]]:
    """Returns planted -> found -> how often."""
    counted = Counter((each.planted, each.found) for each in verdicts)
    return {a: {b: counted[a, b] for b in NAMES if counted[a, b]} for a in NAMES if any(counted[a, b] for b in NAMES)}


def calibration(verdicts: Iterable[Verdict]) -> list[tuple[float, float, int, float, float]]:
    """Returns (from, to, causes, mean score, share that was planted) of each bin of scores, over all causes judged.

    >>> calibration([Verdict("a", "schedule", "schedule", {"schedule": 0.9, "landscape": 0.1})])
    [(0.0, 0.15, 1, 0.1, 0.0), (0.85, 0.95, 1, 0.9, 1.0)]
    """
    pairs = [(score, name == each.planted) for each in verdicts for name, score in each.scores.items()]
    rows = []
    for low, high in pairwise(BINS):
        inside = [(s, hit) for s, hit in pairs if low <= s < high or (high == 1.0 and s == 1.0)]
        if inside:
            n = len(inside)
            mean, share = sum(s for s, _ in inside) / n, sum(h for _, h in inside) / n
            rows.append((low, high, n, round(mean, 3), round(share, 3)))
    return rows


def accuracy(verdicts: Sequence[Verdict]) -> float:
    """Returns the share of runs whose likeliest cause is the planted one."""
    return sum(each.right for each in verdicts) / len(verdicts) if verdicts else math.nan


def arms(runs: Iterable[Run]) -> dict[tuple[str, str], Counter[str]]:
    """Returns (planted cause, arm) -> how often which verdict, over the replays that are kept with the runs."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for run in runs:
        event = the_event(run)
        for replay in run.findings_of(event, "replay")[-1:] if event is not None else ():
            cause = run.meta["planted"]["cause"]
            found.setdefault((cause, "reproducible"), Counter())[str(replay.get("reproducible"))] += 1
            for arm in replay.get("arms", []):
                found.setdefault((cause, arm["name"]), Counter())[arm["verdict"]] += 1
    return found


def rows(run: Run) -> dict[str, Any] | None:
    """Returns what was found of a run's bad examples, as it was kept with the run."""
    found: dict[str, Any] | None = run.meta.get("planted_rows")
    return found


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
