"""Head rows that came in a run: how the first loss with them compares with before, and with what was foretold."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from foreshock.detect.series import series
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.run import Run

KIND = "rows_initialised"  # of the note that `init_new_rows(..., monitor=...)` leaves
LEVEL = 50  # steps before whose mean loss is the level
CALM = 1.5  # times the level up to which a first loss is no peak; noise that was as high before is none either
WAYS = {
    "ls": "by least squares", "class_mean": "as class means", "unit_mean": "as means of unit features",
    "random": "at random",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class NewRows:
    """Rows that came, and the loss around them; NaN for what the run does not tell.

    Attributes:
        step: whose batch met them first.
        rows: how many; 0 where the note does not say.
        way: how they were chosen, in words.
        first: loss of that batch.
        level, highest: mean and largest loss of the 50 steps before.
        foretold, random: loss that was expected with these rows, and with random ones.
        old, old_before: share of old examples told right with these rows, and without any.
    """

    step: int
    rows: int
    way: str
    first: float
    level: float
    highest: float
    foretold: float
    random: float
    old: float
    old_before: float

    @property
    def ratio(self) -> float:
        """First loss over the level; NaN where that is not positive."""
        return self.first / self.level if self.level > 0 else math.nan

    @property
    def calm(self) -> bool:
        """Whether the first loss was none that stands out; False where that is not known."""
        return self.first <= max(CALM * self.level, self.highest)

    @property
    def good(self) -> bool:
        """Whether they were solved for, and expected to cost at most half of what random rows do."""
        return self.way == WAYS["ls"] and self.foretold <= 0.5 * self.random

    def told(self) -> str:
        """Returns what came and what it did, in a sentence or three."""
        verb = "was" if self.rows == 1 else "were"
        who = count(self.rows, "row") if self.rows else "New rows"
        said = [f"{who} of the head {verb} chosen {self.way} before step {self.step:,}"]
        if not math.isnan(self.first) and not math.isnan(self.level):
            times = "" if math.isnan(self.ratio) else f"{number(self.ratio, 2)} times "
            said[0] += f", whose loss was {number(self.first)}, {times}the {number(self.level)} of the steps before"
        said[0] += "."
        if not math.isnan(self.foretold) and self.random > 0:
            said.append(
                f"Foretold for them was {number(self.foretold)}, {number(self.foretold / self.random, 2)} times the "
                f"{number(self.random)} of random rows."
            )
        if not math.isnan(self.old) and self.old_before > 0:
            shares = f"{percent(self.old)} of the old examples were told right with them, {percent(self.old_before)}"
            said.append(f"{shares} without.")
        return " ".join(said)


def new_rows(run: Run, first: int, last: int) -> NewRows | None:
    """Returns the rows that came last with first <= step <= last; None where none did.

    Args:
        run: the run, or the part of it around an event.
        first, last: steps.
    """
    found = [
        note for note in run.notes
        if note.get("kind") == KIND and isinstance(note.get("step"), int) and first <= note["step"] <= last
    ]  # fmt: skip
    if not found:
        return None
    note = max(found, key=lambda each: int(each["step"]))
    step, loss = int(note["step"]), series(run, "loss")
    before, after = loss.within(step - LEVEL, step - 1).values, loss.within(step, step + LEVEL).values
    known = len(before) > 0
    return NewRows(
        step, len(note["new"]) if isinstance(note.get("new"), (list, tuple)) else 0,
        WAYS.get(str(note.get("method")), "anew"), float(after[0]) if len(after) else math.nan,
        float(np.mean(before)) if known else math.nan, float(np.max(before)) if known else math.nan,
        _float(note, "first_loss"), _float(note, "random_loss"), _float(note, "old_accuracy"),
        _float(note, "old_accuracy_before"),
    )  # fmt: skip


def _float(note: dict[str, Any], name: str) -> float:
    value = note.get(name)
    return float(value) if isinstance(value, (int, float)) else math.nan
