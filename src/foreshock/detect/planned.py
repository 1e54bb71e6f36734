"""Tells when a rise of the loss is part of the plan: the learning rate went up."""

from __future__ import annotations

from collections import deque
from typing import Any

from foreshock.detect.base import is_finite
from foreshock.run.record import StepRecord

RATIO = 1.15  # up by this much within `RECORDS` records: a restart, a step, or the steep part of a warm-up
RECORDS = 8


class PlannedRise:
    """Says, record by record, whether the learning rate went up by 15 % within 8 records, less than `wait` records ago.

    It reads the signal "lr", or "lr/group0" where the parameter groups have different ones.
    Without either it never says so.
    """

    __slots__ = ("_lr", "_wait", "wait")

    def __init__(self, *, wait: int) -> None:
        self.wait = wait
        self._lr: deque[float] = deque(maxlen=RECORDS)
        self._wait = 0

    def update(self, record: StepRecord) -> bool:
        """Takes the next record."""
        lr = record.values.get("lr", record.values.get("lr/group0"))
        if self._wait:
            self._wait -= 1
        if is_finite(lr):
            last = self._lr
            if last and lr > last[-1] and lr > RATIO * min(last):
                self._wait = self.wait
            last.append(lr)
        return self._wait > 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {"lr": list(self._lr), "wait": self._wait}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._lr, self._wait = deque(state["lr"], maxlen=RECORDS), int(state["wait"])
