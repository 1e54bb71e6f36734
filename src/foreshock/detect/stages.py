"""The stages of a curvature spike, each from its own measurable rule, with hindsight.

Under an optimizer with a second moment v ("adam", the five stages of Bai et al. 2025, arXiv 2506.04805; the third in
two parts):

| stage | from | to |
|---|---|---|
| stable | the approach begins: chi is lowest, or was last below 0.5 | v decays freely |
| decoupled | v of the tensor at the edge decays at beta2: the gradient feeds it with less than a tenth | chi passes 1 |
| silent | chi >= 1 in an unbroken run, the loss still falls | chi_gradient passes 1, or the loss turns |
| onset | the curvature along the gradient is above 1, the loss grows geometrically | v grows |
| refill | v grows in the unstable direction while the loss still rises | chi falls below 1 |
| decay | chi is below 1, the loss peaks and rings down | 25 losses within a factor 1.5 |

Under plain gradient descent ("landscape", Li, Xu and Zhang 2023, arXiv 2305.12133): approach, silent, onset (ascent),
flattening (chi below 1, the loss not yet at its peak), descent.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal

from foreshock.detect.landmarks import Landmarks, landmarks
from foreshock.detect.second_moment import betas, growth
from foreshock.detect.series import Series, near, series
from foreshock.run.event import Event
from foreshock.run.run import Run

Family = Literal["adam", "landscape"]
ADAM = ("stable", "decoupled", "silent", "onset", "refill", "decay")
LANDSCAPE = ("approach", "silent", "onset", "flattening", "descent")


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage: first <= step <= last.

    Attributes:
        name: one of `ADAM` or `LANDSCAPE`.
        first: its first step.
        last: its last step.
        evidence: the numbers that tell it, by name: values at its ends, or steps.
        tensor: the tensor it was read from, where one was.
    """

    name: str
    first: int
    last: int
    evidence: Mapping[str, float] = field(default_factory=dict)
    tensor: str | None = None


@dataclass(frozen=True, slots=True)
class Stages:
    """The stages of one event, in order; those that cannot be told are left out.

    Attributes:
        bounds: the stages, adjacent.
        family: "adam" where the optimizer divides by a second moment, else "landscape".
        missing: signals that the run lacks and that would tell more.
        marks: the corners they were made from.
    """

    bounds: tuple[Stage, ...]
    family: Family
    missing: tuple[str, ...]
    marks: Landmarks

    def at(self, step: int) -> str | None:
        """Returns the name of the stage that a step is in."""
        return next((stage.name for stage in self.bounds if stage.first <= step <= stage.last), None)

    def __getitem__(self, name: str) -> Stage:
        """Returns the stage of that name.

        Errors: KeyError where it was not seen.
        """
        for stage in self.bounds:
            if stage.name == name:
                return stage
        raise KeyError(f"no stage {name!r} here; there are: {', '.join(each.name for each in self.bounds) or 'none'}")

    def __contains__(self, name: object) -> bool:
        return any(stage.name == name for stage in self.bounds)


def stages(run: Run, event: Event) -> Stages:
    """Returns the stages of an event: complete with hindsight, those so far of an event that is open.

    Where chi was read around the rise and never reached 1, there are none: the spike is not of this kind.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent, transient or spike.
    """
    run = near(run, event)
    marks = landmarks(run, event)
    family: Family = "adam" if marks.adam else "landscape"
    starts = _starts(marks)
    final = marks.last if marks.turn is not None or marks.down is None else marks.down - 1
    bounds = []
    for place, (name, first) in enumerate(starts):
        last = starts[place + 1][1] - 1 if place + 1 < len(starts) else final
        if last >= first:
            tensor = marks.tensor if name in ("decoupled", "refill") else None
            bounds.append(Stage(name, first, last, _evidence(run, name, first, last, marks), tensor))
    return Stages(tuple(bounds), family, marks.missing, marks)


def _starts(marks: Landmarks) -> list[tuple[str, int]]:
    """Returns the stages that happened, with their first steps, in order."""
    if marks.crossing is None and (marks.decoupled is None or "chi" not in marks.missing):
        return []
    onset, crossing = marks.turn if marks.along is None else marks.along, marks.crossing
    if onset is not None and crossing is not None:
        onset = max(onset, crossing)
    over = marks.down if marks.down is not None else marks.peak
    refill = marks.refill if over is None or marks.refill is None or marks.refill < over else None
    if marks.adam:
        names = [("stable", marks.begin), ("decoupled", marks.decoupled), ("silent", crossing), ("onset", onset)]
        names += [("refill", refill), ("decay", over)]
    else:
        flat = marks.down if marks.peak is None or marks.down is None or marks.down <= marks.peak else None
        descent = None if marks.peak is None else marks.peak + 1
        names = [("approach", marks.begin), ("silent", crossing), ("onset", onset), ("flattening", flat)]
        names += [("descent", descent)]
    if onset is None:  # chi came and went, and the loss did not turn
        names = [pair for pair in names if pair[0] not in ("refill", "decay", "flattening", "descent")]
    found: list[tuple[str, int]] = []
    for name, first in names:
        if first is None:
            continue
        while found and found[-1][1] >= first:  # the later corner tells: in one dimension there is no silent stage
            found.pop()
        found.append((name, first))
    return found


def _evidence(run: Run, name: str, first: int, last: int, marks: Landmarks) -> dict[str, float]:
    """Returns the numbers that tell a stage."""
    chi, loss = series(run, "chi").within(first, last), series(run, "loss")
    found: dict[str, float] = {}
    if len(chi):
        found |= {"chi_first": float(chi.values[0]), "chi_last": float(chi.values[-1])}
        found["chi_max"] = float(chi.values.max())
    found |= {"loss_first": loss.at(first), "loss_last": loss.at(last)} if len(loss) else {}
    if name == "decoupled":
        values = Series(*growth(run, marks.tensor)).within(first, last).values
        beta2 = betas(run)[1]
        found |= {"v_ratio": float(sorted(values)[len(values) // 2])} if len(values) else {}
        found |= {} if beta2 is None else {"beta2": beta2}
    if name == "silent":
        found |= _ends(series(run, "chi_alignment").within(first, last), "alignment")
        found |= {} if marks.below is None else {"crossing_after": float(marks.below)}
    if name == "onset":
        found |= {} if marks.along is None else {"chi_gradient_crossing": float(marks.along)}
        found |= {} if marks.turn is None else {"loss_minimum": float(marks.turn)}
    if name == "refill" and marks.refill is not None:
        found["v_minimum"] = float(marks.refill - 1)
        values = Series(*growth(run, marks.tensor)).within(first, last).values
        found |= {"v_ratio_max": float(values.max())} if len(values) else {}
    if name in ("decay", "flattening") and marks.peak is not None:
        found["loss_peak"] = float(marks.peak)
    return found


def _ends(values: Series, name: str) -> dict[str, float]:
    if not len(values):
        return {}
    return {f"{name}_first": float(values.values[0]), f"{name}_last": float(values.values[-1])}
