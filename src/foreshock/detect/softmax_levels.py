"""When a softmax in low precision absorbs, soon will, and does no more; and when head and features inflate.

The class sums of the gradient tell it: in exact arithmetic they vanish. In 27 ordinary trainings (batches, wrong
labels, smoothing, class weights, decay, SGD, a thousand classes) their share of the gradient, the residual, stayed
below 1e-3; in 36 that spiked it passed 0.01 doubling every 23 to 30 steps, and 0.1 some 80 steps later. How many
right-class gradients are exactly 0 says less: with a hundred classes hardly one is when half of their digits are gone.

Source: Liu, Cao, Li and Zhou 2026, arXiv 2605.06152; levels from their reference configuration and those trainings.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from foreshock.detect.base import is_finite

ABSORBED, RESIDUAL = 0.05, 0.1  # shares of rows and of the gradient's mass from which absorption is at work
ERROR = 0.1  # relative error of the right class's gradient against float64 from which on rounding is the cause
FADED = 0.3  # share of both below which a reading counts as over: near the levels readings are noisy
EARLY, EARLY_ERROR = 0.003, 0.003  # residual and error from which a rise is worth foretelling: thrice the healthy one
HORIZON = 150  # steps ahead that the residual is foretold to pass its level: fast trainings spike 210 steps after that
WINDOW, LEAST = 60, 3  # steps whose readings make the forecast, and how many there have to be
SURE = 2.0  # standard errors that the rise must have
COSINE = -0.8  # of the class mean of the head with the mean feature
GROWN, FLAT = 2.0, 0.05  # growth of the head's class mean, and what the rest of the head may change meanwhile
NATS = 1.0  # what one step may shift a logit by


def at_work(absorbed: float, residual: float, error: float | None = None) -> bool:
    """Says whether a reading shows absorption at work: right classes lost their gradients, and it shows in the sums.

    A float64 recomputation that finds the gradient right (`error`) overrules both.

    >>> at_work(0.9, 0.5), at_work(0.9, 0.05), at_work(0.9, 0.5, error=0.01)
    (True, False, False)
    """
    sound = error is not None and error <= ERROR
    return absorbed > ABSORBED and residual > RESIDUAL and not sound


def faded(absorbed: float, residual: float, error: float | None = None) -> bool:
    """Says whether a reading shows absorption to be over; readings about the levels show neither that nor `at_work`.

    >>> faded(0.9, 0.05), faded(0.9, 0.01), faded(0.01, 0.05)
    (False, True, True)
    """
    sound = error is not None and error <= 2 * FADED * ERROR  # about twice the residual
    return absorbed < FADED * ABSORBED or residual < FADED * RESIDUAL or sound


def inflated(values: Mapping[str, float], base: Mapping[str, float]) -> tuple[str, ...]:
    """Returns by which rules a reading shows inflation: "cosine", "growth", both or none.

    Args:
        values: signals of the reading.
        base: "head_mean" and "head_centred" when absorption began.
    """
    rules = []
    cosine, mean, rest = (values.get(f"softmax_{name}") for name in ("cosine", "head_mean", "head_centred"))
    if is_finite(cosine) and cosine < COSINE:
        rules.append("cosine")
    if is_finite(mean) and is_finite(rest) and base:
        flat = abs(rest / base["head_centred"] - 1) <= FLAT
        rules += ["growth"] if flat and mean > GROWN * base["head_mean"] else []
    return tuple(rules)


class Rise:
    """Foretells when the residual passes its level, by the line through its last logarithms.

    >>> rise = Rise()
    >>> for step in range(0, 50, 10):
    ...     rise.take(step, 0.01 * 2 ** (step / 25))
    >>> round(rise.ahead())
    43
    """

    def __init__(self) -> None:
        self._readings: deque[tuple[int, float]] = deque()

    def take(self, step: int, residual: float) -> None:
        """Takes a reading."""
        while self._readings and self._readings[0][0] < step - WINDOW:
            self._readings.popleft()
        if residual > 0.0:
            self._readings.append((step, math.log(residual)))

    def ahead(self) -> float:
        """Returns the steps until it passes; 0 where it has, infinite where it does not rise for sure."""
        n = len(self._readings)
        if n < LEAST:
            return math.inf
        last = self._readings[-1][1]
        if last >= math.log(RESIDUAL):
            return 0.0
        middle, level = (sum(each[i] for each in self._readings) / n for i in (0, 1))
        width = sum((step - middle) ** 2 for step, _ in self._readings)
        slope = sum((step - middle) * (value - level) for step, value in self._readings) / width
        rest = sum((value - level - slope * (step - middle)) ** 2 for step, value in self._readings)
        if not slope > SURE * math.sqrt(rest / (n - 2) / width):
            return math.inf
        return (math.log(RESIDUAL) - last) / slope

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {"readings": [list(each) for each in self._readings]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._readings = deque((int(step), value) for step, value in state["readings"])
