"""Detects values that turned NaN or infinite."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from foreshock.detect.base import pack, unpack
from foreshock.run.event import Event
from foreshock.run.record import StepRecord

# Signals that a healthy run never has non-finite; a user's own signal may be NaN by design, so it is not watched.
WATCHED = ("loss", "grad_norm", "update_norm", "param_norm")


class NonFinite:
    """Raises one event for a stretch of NaN or infinite values, however long it is and however many signals it hits.

    The event ends once all watched signals were finite for `calm` records. A count of tensors with non-finite values
    (signal "nonfinite") above zero counts too. A step that the gradient scaler skipped is its normal search for the
    loss scale and is passed over, unless the loss itself is not finite.

    Event data: "signals" (those hit, in order), "value" ("nan", "inf" or "-inf" of the first), "count" (records).

    >>> from foreshock.run.record import StepRecord
    >>> [event.raised for event in NonFinite().update(StepRecord(7, {"loss": float("nan")}))]
    [7]
    """

    def __init__(self, *, calm: int = 5) -> None:
        self.calm = calm
        self._event: Event | None = None
        self._finite = 0

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns the event when it is raised, when another signal joins it, and when it ended."""
        bad = _nonfinite(record.values)
        event = self._event
        if not bad:
            if event is None:
                return ()
            self._finite += 1
            if self._finite < self.calm:
                return ()
            self._event = None
            return (event,) if event.end is not None else ()
        self._finite = 0
        name, value = next(iter(bad.items()))
        if event is None:
            data = {"signals": list(bad), "value": str(value), "count": 1}
            self._event = Event(
                "nonfinite", record.step, record.step, record.step, record.step, value, math.inf, name, data
            )
            return (replace(self._event, end=None),)
        joined = [signal for signal in bad if signal not in event.data["signals"]]
        data = {**event.data, "signals": event.data["signals"] + joined, "count": event.data["count"] + 1}
        self._event = replace(event, end=record.step, data=data)
        return (replace(self._event, end=None),) if joined else ()

    def finish(self) -> Sequence[Event]:
        """Returns the open event, closed at its last non-finite record."""
        return () if self._event is None else (self._event,)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {"event": pack(self._event), "finite": self._finite}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._event = unpack(state["event"])
        self._finite = int(state["finite"])


def _nonfinite(values: Mapping[str, float]) -> dict[str, float]:
    bad: dict[str, float] = {}
    for name in WATCHED:
        value = values.get(name, 0.0)
        if value - value != 0.0:  # true for NaN and both infinities
            bad[name] = value
    if values.get("nonfinite", 0.0) > 0.0 and not bad:
        bad["nonfinite"] = values["nonfinite"]
    if bad and "loss" not in bad and values.get("skipped", 0.0) == 1.0:
        return {}
    return bad
