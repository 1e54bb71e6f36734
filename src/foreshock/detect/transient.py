"""Labels what passed above the edge and came to nothing: too short, along a direction that turned, or self-limiting."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Literal

from foreshock.detect.base import pack, unpack
from foreshock.run.event import Event

How = Literal["short", "turning", "mild", ""]
DUST = 0.01  # least noise of a reading: what solvers resolve
CLOSE = 25  # readings after which another excursion is another event


class Transients:
    """Gathers excursions of chi above 1 that raised no alarm into events of kind `transient`.

    Event data: "value" (largest reading), "crossings" (excursions), and how many of them were "short" (fewer than three
    readings), "turning" (no direction lasted), "mild" (their outlook was a rise of the loss that nobody would see).
    """

    def __init__(self) -> None:
        self._event: Event | None = None
        self._top: tuple[float, int] | None = None  # of the excursion that is going on: (value, step)
        self._began = 0
        self._since = 0
        self._told = 0

    def take(self, step: int, value: float, passed: str) -> Sequence[Event]:
        """Takes a reading, and how the excursion that it ended, if it ended one, came to nothing."""
        found: list[Event] = []
        if value > 1.0:
            if self._top is None:
                self._began = step
            self._top = max(self._top or (value, step), (value, step))
            self._since = 0
        else:
            if passed and self._top is not None:
                found += self._add(step, self._top, passed)
            self._top = None
            self._since += 1
            if self._event is not None and self._since >= CLOSE:
                found.append(self._event)
                self._event = None
        return found

    def finish(self) -> Sequence[Event]:
        """Returns the open event."""
        return () if self._event is None else (self._event,)

    def _add(self, step: int, top: tuple[float, int], passed: str) -> Sequence[Event]:
        value, at = top
        if self._event is None:
            counts = {"crossings": 0, "short": 0, "turning": 0, "mild": 0}
            data: dict[str, Any] = {"value": value, **counts}
            height = value - 1.0
            self._event = Event("transient", step, self._began, at, step, height, height / DUST, "chi", data)
            self._told = 0
        event = self._event
        data = {**event.data, "crossings": event.data["crossings"] + 1, passed: event.data[passed] + 1}
        if value > data["value"]:
            event = replace(event, peak=at, height=value - 1.0, severity=(value - 1.0) / DUST)
            data["value"] = value
        self._event = replace(event, end=step, data=data)
        if data["crossings"] < 2 * self._told:
            return ()
        self._told = data["crossings"]
        return (replace(self._event, end=None),)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "event": pack(self._event), "top": None if self._top is None else list(self._top), "began": self._began,
            "since": self._since, "told": self._told,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._event, self._began = unpack(state["event"]), int(state["began"])
        self._top = None if state["top"] is None else (float(state["top"][0]), int(state["top"][1]))
        self._since, self._told = int(state["since"]), int(state["told"])
