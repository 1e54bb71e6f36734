"""What a detector is: a fold over records that emits events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Protocol, TypeGuard, runtime_checkable

from foreshock.run.event import Event
from foreshock.run.record import StepRecord

__all__ = ["Detector", "Event", "is_finite", "pack", "unpack"]


@runtime_checkable
class Detector(Protocol):
    """A fold over records with state. `foreshock.testing.check_detector` runs the contract on any implementation.

    The same object serves live (the monitor feeds it at each flush) and offline (`scan` feeds it a stored run), and
    gives the same events in both. It is deterministic, costs O(1) a record, survives NaN and missing signals, and
    its state round-trips through `state_dict`: n records, save, load, n more equals 2n records.
    """

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Takes the next record and returns the events raised or changed by it (mostly none)."""
        ...

    def finish(self) -> Sequence[Event]:
        """Returns the closing versions of the events still open at the end of the run; changes no state."""
        ...

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values (NaN and inf allowed)."""
        ...

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        ...


def pack(event: Event | None) -> dict[str, Any] | None:
    """Returns an event, or none, as a detector's `state_dict` holds it."""
    return None if event is None else event.to_dict()


def unpack(fields: dict[str, Any] | None) -> Event | None:
    """Returns the event that `pack` was given."""
    return None if fields is None else Event.from_dict(fields)


def is_finite(value: float | None) -> TypeGuard[float]:
    """Says whether a signal was measured and is neither NaN nor infinite."""
    return value is not None and value - value == 0.0
