"""A record: all run-wide signals of one optimizer step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class StepRecord:
    """What detectors fold over: one optimizer step and its run-wide signals.

    Attributes:
        step: number of the optimizer step, counted from 0 by the monitor; strictly increasing within a run.
        values: signal name -> value. A signal that was not measured at this step is absent; a signal that was
            measured and is NaN is present and NaN.
        time: wall clock in seconds since the epoch, 0.0 where it is unknown.
    """

    step: int
    values: Mapping[str, float]
    time: float = 0.0
