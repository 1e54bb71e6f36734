"""What a training of the Adam-spikes reproduction found: numbers for claims, runs, rows of a table, things to draw."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from foreshock.diagnose import Approach, approach
from foreshock.papers.calm_spikes import Match, Spike, match, runs_above, spikes
from foreshock.run import Event, Run

__all__ = ["COLUMNS", "Found", "Live", "Passage", "causes", "passages", "row", "settled_runs", "verdicts"]

Live = Callable[[float, str], None]
"""Called as (share that is done, what is going on)."""

COLUMNS = ("training", "seed", "steps", "spikes", "chi > 1", "max chi", "lead", "final loss", "seconds")
SETTLED = 50  # steps after which chi is judged: before, bias corrections and young second moments put it above 1
BEFORE = 40  # steps before the lowest loss within which the lowest v is looked for


@dataclass(frozen=True, slots=True)
class Found:
    """What a training of one seed found.

    Attributes:
        numbers: what claims are about.
        runs: name -> run.
        rows: of the table.
        drawn: what only figures need.
    """

    numbers: Mapping[str, float]
    runs: Mapping[str, Run] = field(default_factory=dict)
    rows: Sequence[tuple[str, ...]] = ()
    drawn: Mapping[str, Any] = field(default_factory=dict)


class Passage(NamedTuple):
    """A spike's way through its stages, in steps: chi rises above 1, the curvature along the gradient does, the loss is
    lowest, v is lowest, chi falls below 1, the loss peaks."""

    up: int
    along: int
    baseline: int
    trough: int
    down: int
    peak: int

    @property
    def in_order(self) -> tuple[bool, bool, bool, bool, bool]:
        """Returns which of the relations (a) to (e) hold: up <= along + 1, along <= baseline + 20,
        baseline <= trough + 1, down <= peak + 1, trough <= down."""
        return (
            self.up <= self.along + 1, self.along <= self.baseline + 20, self.baseline <= self.trough + 1,
            self.down <= self.peak + 1, self.trough <= self.down,
        )


def passages(found: list[Spike], chi: Match, along: Match, v_ratio: npt.NDArray[np.float64]) -> list[Passage]:
    """Returns the passages of those spikes that both signals announce.

    Args:
        found: the spikes.
        chi, along: their matches with runs of chi and of the curvature along the gradient.
        v_ratio: |v_t| / |v_{t-1}| at each step.
    """
    size = np.cumsum(np.log(np.nan_to_num(v_ratio, nan=1.0)))
    first, second = dict(chi.pairs), dict(along.pairs)
    result = []
    for spike in found:
        if spike in first and spike in second:
            start = max(spike.baseline - BEFORE, 0)
            trough = start + int(np.argmin(size[start : spike.peak + 1]))
            (up, last), (begun, _) = first[spike], second[spike]
            result.append(Passage(up, begun, spike.baseline, trough, last + 1, spike.peak))
    return result


def causes(run: Run, found: Sequence[Spike]) -> list[Approach | None]:
    """Returns what `diagnose.approach` says of each spike."""
    result = []
    for spike in found:
        height = float(run["loss"][spike.peak] - run["loss"][spike.baseline])
        event = Event("spike", spike.trigger, spike.trigger, spike.peak, spike.end, height, height, "loss")
        result.append(approach(run, event))
    return result


def verdicts(run: Run, found: Sequence[Spike]) -> list[str]:
    """Returns what is to blame for each spike: "preconditioner", "unexplained", ..."""
    return ["unknown" if cause is None else cause.verdict for cause in causes(run, found)]


def settled_runs(run: Run, signal: str, length: int = 3, edge: float = 1.0) -> list[tuple[int, int]]:
    """Returns the runs of a signal above its edge, by readings in a row, as (first, last) step; the start left out."""
    steps, values = run.measured(signal)
    kept = steps >= SETTLED
    steps, values = steps[kept], values[kept]
    return [(int(steps[first]), int(steps[last])) for first, last in runs_above(values, length, edge)]


def row(title: str, seed: int, run: Run, seconds: float, factor: float = 1.5) -> tuple[str, ...]:
    """Returns the row of a training, its spikes by the calm rule with a rise of `factor`."""
    losses = run["loss"]
    found = spikes(losses, factor)
    chi, most, lead = "-", "-", "-"
    if "chi" in run:
        crossings = settled_runs(run, "chi")
        pairs = match(found, crossings).pairs
        chi, steps = str(len(crossings)), run.measured("chi")
        most = f"{steps[1][steps[0] >= SETTLED].max():.3f}" if (steps[0] >= SETTLED).any() else "-"
        lead = f"{np.median([spike.trigger - up for spike, (up, _) in pairs]):.0f}" if pairs else "-"
    return (
        title, str(seed), f"{len(losses):,}", str(len(found)), chi, most, lead, f"{np.median(losses[-50:]):.2g}",
        f"{seconds:.1f}",
    )
