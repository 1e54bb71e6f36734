"""Small curves with what happens in them known by construction."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from foreshock.detect import Detector, default_detectors
from foreshock.run import Event, StepRecord


def records(loss: Iterable[float], **signals: Iterable[float]) -> list[StepRecord]:
    """Returns one record a step, with the loss and any other signals given as series of the same length."""
    names = ("loss", *signals)
    columns = zip(loss, *signals.values(), strict=True)
    return [StepRecord(step, dict(zip(names, row, strict=True))) for step, row in enumerate(columns)]


def noisy(n: int, level: float | Callable[[int], float] = 2.0, *, sigma: float = 0.02, seed: int = 0) -> list[float]:
    """Returns `n` losses around a level, or a function of the step, with normal noise."""
    noise = random.Random(seed)
    at = level if callable(level) else lambda step: level
    return [at(step) + noise.gauss(0.0, sigma) for step in range(n)]


def falling(step: int) -> float:
    """An ordinary language-model curve: 10 to about 2.5, a power law."""
    return 2.0 + 8.0 * (1.0 + step / 15.0) ** -0.7


def with_(loss: Sequence[float], extra: Mapping[int, float]) -> list[float]:
    """Returns the losses with something added at some steps."""
    return [value + extra.get(step, 0.0) for step, value in enumerate(loss)]


def versions(rows: Iterable[StepRecord], detectors: Sequence[Detector] | None = None) -> list[Event]:
    """Returns all versions of all events, in the order in which they were emitted, the closing ones last."""
    detectors = default_detectors() if detectors is None else detectors
    events = [event for record in rows for detector in detectors for event in detector.update(record)]
    return events + [event for detector in detectors for event in detector.finish()]


def brief(events: Iterable[Event]) -> list[tuple[Any, ...]]:
    """Returns what of the events must not depend on the unit of the loss."""
    return [(event.kind, event.signal, event.raised, event.onset, event.peak, event.end) for event in events]


def slope_noise(n: int, seed: int = 0) -> list[float]:
    """Returns a gradient norm: log-normal around 0.4."""
    noise = random.Random(seed)
    return [0.4 * math.exp(noise.gauss(0.0, 0.12)) for _ in range(n)]
