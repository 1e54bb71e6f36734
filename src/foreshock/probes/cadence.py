"""How often curvature is measured: seldom when calm, more often when something stirs, every step in danger."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

State = Literal["calm", "watch", "alarm"]
LEVELS: dict[State, float] = {"calm": 0.0, "watch": 1.0, "alarm": 2.0}
"""What the signal `curvature_cadence` shows."""

NEAR = 0.8  # chi from which the edge is near enough to look more often; it grows by half in 100 steps or fewer there
CONFIRMED = 3  # readings above 1 in a row before every step is measured; single crossings are noise (Bai et al. 2025)
RELIEVED = 10  # readings in a row below NEAR before watch ends
OVER = 25  # readings in a row below 1 before alarm does: another direction may follow, and steps are not far apart
OFTEN = 10  # readings in watch for each one when calm
EARLY = 10  # step of the first reading; the next ones are at twice as many, until they are as far apart as is usual
AHEAD = 3  # readings, at least, until chi would be at the edge
RAISED = 1.1  # times the learning rate of the last reading that call for another; less is a schedule's daily step


class Cadence:
    """Says at which steps to measure, from what was measured.

    Calm: every `every` steps, after steps 10, 20, 40 and so on: not at the first ones, because bias correction and
    young second moments put chi far above 1 for a step or two of every Adam run. Watch, entered at chi > 0.8 or when
    `stir` is called: ten times as often. Alarm, after three readings above 1 in a row: every step. Back down after 25
    readings in a row below 1 and ten below 0.8.

    In calm and watch the next reading comes sooner where chi is on its way to 1: after a third of the steps that it
    would take, by its trend or by the free decay of the second moment; and at the next step where chi was above 1, so
    that three in a row take three steps. It comes at once where the learning rate alone, which chi is proportional to,
    has brought chi near the edge since the last reading.

    Args:
        every: steps from one reading to the next when calm.

    Attributes:
        last: step of the last reading, or of the last that was due and could not be had.
    """

    def __init__(self, every: int) -> None:
        self.every = every
        self.state: State = "calm"
        self.last = 0
        self._above = 0
        self._below = 0
        self._stirred_until = -1
        self._chi = math.nan
        self._ahead = math.inf  # steps until chi will be 1, as it looked at the last reading
        self._rates: tuple[float, ...] = ()  # learning rates of the groups, now and at the last reading
        self._rates_then: tuple[float, ...] = ()

    @property
    def distance(self) -> int:
        """Steps from one reading to the next in the present state."""
        if self.alarmed:
            return 1
        usual = min(self.every, max(EARLY, self.last)) if self.state == "calm" else max(1, self.every // OFTEN)
        return max(1, int(min(usual, self._ahead / AHEAD)))

    @property
    def alarmed(self) -> bool:
        """Whether the last readings were above 1, be it the first of three."""
        return self.state == "alarm" or self._above > 0

    def in_danger(self, step: int) -> bool:
        """Returns whether a reading at this step is wanted for the edge's sake: it is near, or may be by now."""
        return self.state != "calm" or step - self.last >= self._ahead / AHEAD or self._leapt()

    def due(self, step: int, rates: Sequence[float] = ()) -> bool:
        """Returns whether to measure at this step, which the optimizer's groups take with these learning rates."""
        self._rates = tuple(rates)
        return step > 0 and (step - self.last >= self.distance or self._leapt())

    def _leapt(self) -> bool:
        """Returns whether learning rates, by what they grew since the last reading, have brought chi near the edge."""
        if len(self._rates) != len(self._rates_then):
            return False
        pairs = zip(self._rates, self._rates_then, strict=True)
        grown = max((now / then for now, then in pairs if then > 0), default=0.0)
        return grown > RAISED and self._chi * grown > NEAR

    def stir(self, step: int) -> None:
        """Takes note that a free signal left its range: watch for as long as a calm stretch, at least."""
        self._stirred_until = max(self._stirred_until, step + self.every)
        if self.state == "calm":
            self.state, self._below = "watch", 0

    def took(self, step: int, chi: float | None, crossing: float = math.inf) -> None:
        """Takes a reading, or None where one was due and could not be had.

        Args:
            step: at which it was taken.
            chi: what was read.
            crossing: steps until chi would be 1 if the second moment decayed freely.
        """
        last, self.last = self.last, step
        self._rates_then = self._rates
        if chi is None:
            self._chi, self._ahead = math.nan, math.inf
            return
        growth = chi / self._chi if self._chi > 0 else math.nan
        trend = (step - last) * -math.log(chi) / math.log(growth) if growth > 1 and 0 < chi < 1 else math.inf
        self._chi, self._ahead = chi, min(trend, crossing) if chi < 1 else math.inf
        self._above = self._above + 1 if chi > 1 else 0
        if self.state == "calm" and chi > NEAR:
            self.state, self._below = "watch", 0
        elif self.state == "watch" and self._above >= CONFIRMED:
            self.state, self._below = "alarm", 0
        else:
            self._below = self._below + 1 if chi <= (1.0 if self.state == "alarm" else NEAR) else 0
            if self._below >= OVER and self.state == "alarm":
                self.state, self._below = "watch", 0
            elif self._below >= RELIEVED and self.state == "watch" and step >= self._stirred_until:
                self.state, self._below = "calm", 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "state": self.state, "last": self.last, "above": self._above, "below": self._below,
            "stirred_until": self._stirred_until, "chi": self._chi, "ahead": self._ahead,
            "rates": list(self._rates_then),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.state = state["state"]
        self.last, self._above = int(state["last"]), int(state["above"])
        self._below, self._stirred_until = int(state["below"]), int(state["stirred_until"])
        self._chi, self._ahead = float(state["chi"]), float(state["ahead"])
        self._rates_then = tuple(float(rate) for rate in state.get("rates", ()))
