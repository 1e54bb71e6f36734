"""Detects divergence: the loss left its level, lost much of what it had learnt, and does not come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.level import Level
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import DUST

LOST = 0.25  # share of the descent that must be lost again
RISE = 0.693  # and a positive loss must have doubled: ln 2
Z = 4.0  # and the rise exceed so many standard deviations of single records, 13 of the level


class Divergence:
    """Raises an event when the loss has lost a quarter of its descent again and shows no sign of return.

    Asked of `hold` records in a row: the level (median of 16) stands above its best by `LOST`, `RISE` and `Z` together,
    and at the end not below where it stood at the start. The event ends when half the greatest rise is made good.

    Event data: "baseline" (best level), "scale" (noise, on the loss's scale), "lost" (share of the descent).
    """

    def __init__(self, signal: str = "loss", *, size: int = 16, hold: int = 30) -> None:
        self.signal = signal
        self.hold = hold
        self._level = Level(size)
        self._held: deque[float] = deque(maxlen=hold + 1)  # levels of the elevated records
        self._onset = 0
        self._event: Event | None = None
        self._top = 0.0
        self._told = 0.0

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns the event when it is raised, when its height doubled, and when it ended."""
        value, level = record.values.get(self.signal), self._level
        if not is_finite(value):
            return ()
        if not level.scale.fits(value):
            level.refit(value)
            self._held.clear()
            self._top = 0.0
        if not level.push(value):
            return ()
        if self._event is not None:
            return self._follow(self._event, record.step)
        rise = level.rise
        least = 0.0 if level.scale.linear else RISE
        if rise <= least or self._lost() < LOST or rise <= Z * level.noise():
            self._held.clear()
            return ()
        if not self._held:
            self._onset = record.step
        self._held.append(level.now)
        if len(self._held) <= self.hold or level.now < self._held[0]:
            return ()
        data = {"baseline": level.baseline, "scale": level.noise(), "lost": self._lost()}
        severity = rise / max(level.noise(), DUST)
        step, onset = record.step, self._onset
        self._event = Event("divergence", step, onset, step, step, level.height, severity, self.signal, data)
        self._top, self._told = rise, level.height
        self._held.clear()
        return (replace(self._event, end=None),)

    def _lost(self) -> float:
        descent = self._level.descent
        return self._level.height / descent if descent > 0.0 else 1.0

    def _follow(self, event: Event, step: int) -> Sequence[Event]:
        level = self._level
        if level.rise < 0.5 * self._top:
            self._event = None
            level.rebase()
            return (event,)
        event = replace(event, end=step)
        if level.rise > self._top:
            self._top = level.rise
            severity = level.rise / max(event.data["scale"], DUST)
            data = {**event.data, "lost": self._lost()}
            event = replace(event, peak=step, height=level.height, severity=severity, data=data)
        self._event = event
        if event.height > 2.0 * self._told:
            self._told = event.height
            return (replace(event, end=None),)
        return ()

    def finish(self) -> Sequence[Event]:
        """Returns the open event, ended at the last record."""
        return () if self._event is None else (self._event,)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "level": self._level.state_dict(), "held": list(self._held), "onset": self._onset,
            "event": pack(self._event), "top": self._top, "told": self._told,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._level.load_state_dict(state["level"])
        self._held = deque(state["held"], maxlen=self.hold + 1)
        self._onset, self._event = int(state["onset"]), unpack(state["event"])
        self._top, self._told = float(state["top"]), float(state["told"])
