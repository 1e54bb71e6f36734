"""Hears what the monitor knows that concerns the coming step: readings of curvature, warnings of the softmax."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from foreshock.curvature import Edge
from foreshock.detect.alarm import Alarm
from foreshock.monitor import Monitor
from foreshock.run.event import Event, family

READING = ("chi", "chi_gradient", "chi_gradient_sym", "chi_step", "alignment")


class Sentry:
    """Turns a reading of the coming step, and warnings that stand, into events against it.

    With several ranks a reading counts where all have one, a warning where any has: `say` is added up over the ranks.
    """

    def __init__(self, monitor: Monitor) -> None:
        self._monitor = monitor
        self._alarm = Alarm()
        self._standing: dict[tuple[str, str, int], Event] = {}
        monitor.on_event.append(self._heard)

    def _heard(self, event: Event) -> None:
        if family(event) != "softmax":
            return
        if event.end is None:
            self._standing[event.key] = event
        else:
            self._standing.pop(event.key, None)

    def reading(self) -> Edge | None:
        """Returns the reading of curvature that was taken for this very attempt."""
        return self._monitor.reading

    def say(self) -> tuple[float, float]:
        """Returns what the ranks need to know of each other: whether there is a reading, whether a warning stands."""
        return float(self.reading() is not None), float(bool(self._standing))

    def events(
        self, step: int, values: dict[str, float], sums: Sequence[float], reading: Edge | None, ranks: int = 1
    ) -> list[Event]:
        """Returns the events; what a reading says is added to the values.

        Args:
            step: number of the attempt.
            values: signals of it.
            sums: of what `say` returned, over the ranks.
            reading: of this attempt.
            ranks: how many there are.
        """
        found: list[Event] = []
        if reading is not None and sums[0] >= ranks:
            known = {name: float(getattr(reading, name)) for name in READING} | {"chi_mode_loss": reading.mode_loss}
            known |= self._monitor.beside
            known = {name: value for name, value in known.items() if math.isfinite(value)}
            values |= known
            event = self._alarm.update(step, known | {"loss": reading.loss, "chi_formal": float(reading.formal)})
            found += [event] if event is not None else []
        if self._standing:
            found += self._standing.values()
        elif sums[1] > 0.0:  # another rank's, with nothing known of it here but that it is
            found.append(Event("absorbing", step, step, step, None, math.nan, math.nan, "softmax_absorbed"))
        return found

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        standing = [event.to_dict() for event in self._standing.values()]
        return {"alarm": self._alarm.state_dict(), "standing": standing}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._alarm.load_state_dict(state["alarm"])
        events = [Event.from_dict(saved) for saved in state["standing"]]
        self._standing = {event.key: event for event in events}
