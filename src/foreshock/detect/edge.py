"""Detects that the optimizer is beyond its edge of stability: chi, or the curvature along the gradient, above 1."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import CHANGE_TO_SIGMA

KIND = {"chi": "watch", "chi_gradient": "imminent"}
IN_A_ROW = 3  # readings above 1: with fewer, noise raises as many false alarms as true ones (Bai et al. 2025)
CALM = 5  # readings in a row at or below 1 that end an event
DUST = 0.01  # least noise of a reading: what solvers resolve
RECENT = 33  # readings whose changes tell the noise


class Edge:
    """Raises `watch` when chi was above 1 at three readings in a row, and `imminent` when the curvature along the
    gradient was: chi comes first, tens of steps before a spike; the other says what the next steps will do.

    Readings may be far apart; steps without one do not count. The chi of an optimizer whose steps are bounded whatever
    the gradient (`chi_formal`) raises nothing. A run that trains at its edge for long is one event, not many: it ends
    after five readings in a row at or below 1.

    Event data: "value" (largest reading), "readings" (above 1), "scale" (noise of a reading).

    >>> from foreshock.run.record import StepRecord
    >>> edge, chis = Edge(), [0.6, 0.9, 1.1, 1.2, 1.3]
    >>> [event.kind for i, chi in enumerate(chis) for event in edge.update(StepRecord(100 * i, {"chi": chi}))]
    ['watch']
    """

    def __init__(self) -> None:
        self._runs = {signal: _Run(signal) for signal in KIND}

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns an event when it is raised, when it grew twofold, and when it ended."""
        if record.values.get("chi_formal", 0.0) == 1.0:
            return ()
        found: list[Event] = []
        for signal, run in self._runs.items():
            value = record.values.get(signal)
            if is_finite(value):
                found += run.take(record.step, value)
        return found

    def finish(self) -> Sequence[Event]:
        """Returns the open events, ended at their last readings above 1."""
        return [run.event for run in self._runs.values() if run.event is not None]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {signal: run.state_dict() for signal, run in self._runs.items()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        for signal, run in self._runs.items():
            run.load_state_dict(state[signal])


class _Run:
    """Readings of one signal."""

    def __init__(self, signal: str) -> None:
        self.signal = signal
        self.event: Event | None = None
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._above: list[tuple[int, float]] = []
        self._below = 0
        self._told = 0.0

    def take(self, step: int, value: float) -> Sequence[Event]:
        if self.event is None:
            return self._wait(step, value)
        return self._follow(self.event, step, value)

    def _wait(self, step: int, value: float) -> Sequence[Event]:
        self._above = [*self._above, (step, value)] if value > 1.0 else []
        if len(self._above) < IN_A_ROW:
            self._recent.append(value)
            return ()
        changes = sorted(abs(b - a) for a, b in pairwise(self._recent))
        scale = max(DUST, CHANGE_TO_SIGMA * changes[len(changes) // 2]) if changes else DUST
        peak, most = max(self._above, key=lambda reading: reading[1])
        data = {"value": most, "readings": len(self._above), "scale": scale}
        height = most - 1.0
        self.event = Event(
            KIND[self.signal], step, self._above[0][0], peak, step, height, height / scale, self.signal, data
        )
        self._above, self._below, self._told = [], 0, height
        return (replace(self.event, end=None),)

    def _follow(self, event: Event, step: int, value: float) -> Sequence[Event]:
        if value <= 1.0:
            self._below += 1
            if self._below < CALM:
                return ()
            self.event = None
            self._recent.clear()
            return (event,)
        self._below = 0
        data = {**event.data, "readings": event.data["readings"] + 1}
        event = replace(event, end=step, data=data)
        if value > event.data["value"]:
            height = value - 1.0
            data = {**data, "value": value}
            event = replace(event, peak=step, height=height, severity=height / event.data["scale"], data=data)
        self.event = event
        if event.height <= 2.0 * self._told:
            return ()
        self._told = event.height
        return (replace(event, end=None),)

    def state_dict(self) -> dict[str, Any]:
        return {
            "event": pack(self.event), "recent": list(self._recent), "above": [list(each) for each in self._above],
            "below": self._below, "told": self._told,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.event = unpack(state["event"])
        self._recent = deque(state["recent"], maxlen=RECENT)
        self._above = [(int(step), value) for step, value in state["above"]]
        self._below, self._told = int(state["below"]), float(state["told"])
