"""Foretells the step at which chi will pass 1, while the second moment decays and before anything is to be seen."""

from __future__ import annotations

import math
from collections import deque
from typing import Any

from foreshock.detect.base import is_finite

KEPT = 12  # readings that a forecast is made of
FEW = 4  # and the least
SLACK = 0.3  # least error, as a share of the time ahead: neither trend nor free decay lasts
NEAR = 0.3  # chi from which on a crossing is worth foretelling


class Crossing:
    """Foretells when chi passes 1, with an error, from readings below 1.

    Two forecasts are made of each reading. The closed form, `chi_crossing`: steps until chi would be 1 if v decayed
    freely and the landscape stood still (exact in one dimension; Bai et al. 2025, arXiv 2506.04805). And the trend: a
    line through ln chi of the last readings, which has the landscape and what gradients still feed v in it. The
    forecast is the trend's where there are readings enough, else the closed form's; its error is the largest of half
    their distance, of how much the forecast has moved over the last readings, and of a third of the time ahead.

    Attributes:
        step: the foretold step; None where chi does not rise, or is above 1 already.
        error: of `step`, in steps.
    """

    def __init__(self) -> None:
        self.step: float | None = None
        self.error = math.inf
        self._readings: deque[tuple[int, float]] = deque(maxlen=KEPT)  # (step, ln chi)
        self._made: deque[float] = deque(maxlen=FEW)  # the last forecasts
        self._told: tuple[int, float, float] | None = None  # the forecast that holds: (when it was made, step, error)

    def take(self, step: int, chi: float, ahead: float | None) -> None:
        """Takes a reading: chi, and steps until it would be 1 under free decay, where that is known."""
        if chi >= 1.0:
            self.step, self.error = None, math.inf
            self._readings.clear()
            return
        if not self._readings:
            self._made.clear()
            self._told = None
        if chi < NEAR:
            self._readings.clear()
            self.step, self.error = None, math.inf
            return
        self._readings.append((step, math.log(chi)))
        trend = self._trend()
        free = step + ahead if is_finite(ahead) else None
        best = trend if trend is not None else free
        if best is None:
            self.step, self.error = None, math.inf
            return
        spread = abs(trend - free) / 2 if trend is not None and free is not None else 0.0
        moved = [abs(made - best) for made in self._made]
        one = (self._readings[-1][0] - self._readings[0][0]) / max(1, len(self._readings) - 1)
        self.step, self.error = best, max(one, SLACK * (best - step), spread, *moved) if moved else math.inf
        self._made.append(best)
        if self._told is None or abs(best - self._told[1]) > self._told[2]:
            self._told = (step, best, self.error) if self.error < best - step else None

    def foretold(self) -> dict[str, float]:
        """Returns the earliest forecast of the last approach that no later one has left: made "at", "step" +- "error".

        Empty where none was made with an error smaller than the time ahead.
        """
        return {} if self._told is None else dict(zip(("at", "step", "error"), self._told, strict=True))

    def _trend(self) -> float | None:
        """Returns where the line through the last readings of ln chi meets 0."""
        if len(self._readings) < FEW:
            return None
        n = len(self._readings)
        middle = sum(step for step, _ in self._readings) / n
        level = sum(value for _, value in self._readings) / n
        width = sum((step - middle) ** 2 for step, _ in self._readings)
        slope = sum((step - middle) * (value - level) for step, value in self._readings) / width
        return middle - level / slope if slope > 0 else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "step": self.step, "error": self.error, "readings": [list(each) for each in self._readings],
            "made": list(self._made), "told": None if self._told is None else list(self._told),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.step, self.error = state["step"], float(state["error"])
        self._readings = deque(((int(step), value) for step, value in state["readings"]), maxlen=KEPT)
        self._made = deque(state["made"], maxlen=FEW)
        told = state["told"]
        self._told = None if told is None else (int(told[0]), float(told[1]), float(told[2]))
