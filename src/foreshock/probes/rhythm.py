"""When the softmax is looked at: seldom when calm, more often once absorption is at work."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

EVERY = 5  # readings for each that the monitor wants of costly probes: 20 steps apart at its default
OFTEN = 4  # readings at work for each one when calm
ABSORBED, RESIDUAL = 0.25, 0.003
"""Shares of rows and of the gradient from which absorption is at work. Healthy trainings in float32 hold 1e-3 of the
gradient in their class sums at most, and with many classes those grow long before a row is absorbed whole."""
LEVELS = ({"absorbed": 0.5, "residual": 0.1}, {"cosine": 0.8}, {"sensitivity": 1.0})
"""What detectors warn at (Liu et al. 2026, arXiv 2605.06152; cos < -0.8): they are told at once when it is reached."""
CONFIRMED = 3  # readings at a level that detectors are to have at once
PATIENCE, RARELY = 3, 50  # looks without a softmax, after which one is taken 50 times as seldom
CREDIT, SHARE = 1.5, 0.02  # CPU seconds that readings may take, and the share of the time by which they become more


class Rhythm:
    """Says at which steps to look: at 0, 1, 2, 4, ..., then every `every` steps, four times as often at work.

    Args:
        every: steps from one reading to the next when calm.
        free: whether readings may take as long as they do.
    """

    def __init__(self, every: int, *, free: bool = False) -> None:
        self.every, self.free = every, free
        self.next = 0
        self.urgent = False
        self._misses = 0
        self._held = [0] * len(LEVELS)
        self._spent, self._started = 0.0, time.perf_counter()

    def due(self, step: int) -> bool:
        """Returns whether to look at this step. One that cannot be afforded is put off."""
        if step < self.next:
            return False
        if self.free or self._spent <= CREDIT + SHARE * (time.perf_counter() - self._started):
            return True
        self.next = step + self.every
        return False

    def spent(self, seconds: float) -> None:
        """Takes note of what a reading has cost, in the time of this thread, which no other work lengthens."""
        self._spent += seconds

    def took(self, step: int, values: Mapping[str, float]) -> None:
        """Takes a reading: its quantities, by the names of `Absorption`."""
        self._misses = 0
        at_work = values.get("absorbed", 0.0) > ABSORBED or values.get("residual", 0.0) > RESIDUAL
        usual = max(1, self.every // OFTEN) if at_work else min(self.every, max(1, step))
        self.next = step + usual
        for i, level in enumerate(LEVELS):
            reached = at_work and all(abs(values.get(name, 0.0)) > least for name, least in level.items())
            self._held[i] = self._held[i] + 1 if reached else 0
        self.urgent = any(0 < held <= CONFIRMED for held in self._held)

    def missed(self, step: int) -> None:
        """Takes note that there was no softmax to look at."""
        self._misses += 1
        self.next = step + (1 if self._misses < PATIENCE else RARELY * self.every)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain values."""
        return {"next": self.next, "misses": self._misses, "held": list(self._held)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self.next, self._misses = int(state.get("next", 0)), int(state.get("misses", 0))
        held = list(map(int, state.get("held", ())))
        self._held = held if len(held) == len(LEVELS) else [0] * len(LEVELS)
