"""A detector of your own: a fold over records that emits events. Runs on stored runs and needs no torch.

python examples/own_detector.py
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import foreshock as fs
from foreshock.run import StepRecord


class Ceiling:
    """Raises an event where a signal passes a fixed limit, and ends it where the signal comes back."""

    def __init__(self, signal: str, limit: float) -> None:
        self.signal, self.limit = signal, limit
        self.open: fs.Event | None = None

    def update(self, record: StepRecord) -> Sequence[fs.Event]:
        value = record.values.get(self.signal)
        if value is None or not (value > self.limit or self.open):
            return ()
        step = record.step
        if self.open is None:
            self.open = fs.Event("watch", step, step, step, None, value - self.limit, 0.0, self.signal)
            return (self.open,)
        if value > self.limit:
            return ()
        first = self.open
        self.open = None
        return (fs.Event("watch", first.raised, first.onset, first.peak, step - 1, first.height, 0.0, self.signal),)

    def finish(self) -> Sequence[fs.Event]:
        return () if self.open is None else (self.open,)

    def state_dict(self) -> dict[str, Any]:
        return {"open": None if self.open is None else self.open.to_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.open = None if state["open"] is None else fs.Event.from_dict(state["open"])


def main() -> list[fs.Event]:
    run = fs.Run.from_arrays({"loss": [1.0, 1.1, 3.0, 3.5, 1.0], "grad_norm": [1.0, 1.0, 9.0, 8.0, 1.0]})
    events = fs.scan(run, [Ceiling("grad_norm", 5.0)])
    for event in events:
        print(f"{event.signal} above 5 from step {event.onset} to {event.end}")
    return events


if __name__ == "__main__":
    main()
