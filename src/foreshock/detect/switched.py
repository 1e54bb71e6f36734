"""Tells what a declared switch of the batch size has done to the noise, and for how long to be lenient after it."""

from __future__ import annotations

import math
from typing import Any

from foreshock.detect.base import is_finite
from foreshock.run.record import StepRecord


class Switched:
    """Says, record by record, whether a switch of the batch was declared less than `wait` records ago.

    It reads the signal `batch_switched`, B_new/B_old, which `batch_size.switch` writes; without it it never says so. A
    batch that only became smaller is no declared switch: that may be a mistake, and an event what tells of it.

    Attributes:
        wait: records.
        noisier: at the record of a switch, the factor sqrt(B_old/B_new) by which the loss's noise grows; else, and
            where batches grew, 1.
    """

    __slots__ = ("_wait", "noisier", "wait")

    def __init__(self, *, wait: int) -> None:
        self.wait = wait
        self.noisier = 1.0
        self._wait = 0

    def update(self, record: StepRecord) -> bool:
        """Takes the next record.

        >>> switched = Switched(wait=2)
        >>> [switched.update(StepRecord(step, {"batch_switched": 0.25} if step == 1 else {})) for step in range(4)]
        [False, True, True, False]
        """
        scale = record.values.get("batch_switched")
        self.noisier = 1.0
        if self._wait:
            self._wait -= 1
        if is_finite(scale) and scale > 0.0:
            self._wait = self.wait
            self.noisier = max(1.0, 1.0 / math.sqrt(scale))
        return self._wait > 0

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {"wait": self._wait}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._wait = int(state["wait"])
