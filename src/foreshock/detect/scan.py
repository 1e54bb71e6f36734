"""The shipped detectors and the fold that runs them over a stored run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Protocol

from foreshock.detect.absorption import Absorption
from foreshock.detect.base import Detector
from foreshock.detect.divergence import Divergence
from foreshock.detect.drift import Drift
from foreshock.detect.forecast import Forecast
from foreshock.detect.nonfinite import NonFinite
from foreshock.detect.precursor import Precursor
from foreshock.detect.spike import Spike
from foreshock.run.event import Event, latest
from foreshock.run.record import StepRecord


class HasRecords(Protocol):
    """Whatever can be folded over: a `Run`, or anything else with `records()`."""

    def records(self) -> Iterable[StepRecord]:
        """Returns the records in the order of their steps."""
        ...


def default_detectors() -> list[Detector]:
    """Returns a fresh set of the shipped detectors at their one default setting."""
    return [NonFinite(), Spike(), Divergence(), Drift(), Precursor(), Forecast(), Absorption()]


def scan(run: HasRecords | Iterable[StepRecord], detectors: Sequence[Detector] | None = None) -> list[Event]:
    """Returns the events that the detectors find in a stored run, last versions, ordered by the step they were raised.

    The same fold as live: the events that a monitor with the same detectors would have kept, the open ones closed at
    the end of the run. `detectors` defaults to `default_detectors()`; they are used as they come, so give fresh ones.

    >>> from foreshock.run import Run
    >>> loss = [2.0, 2.1] * 20
    >>> [(event.kind, event.onset) for event in scan(Run.from_arrays({"loss": [*loss, 9.0, *loss]}))]
    [('spike', 40)]
    """
    detectors = default_detectors() if detectors is None else detectors
    events: list[Event] = []
    records = run.records() if hasattr(run, "records") else run
    for record in records:
        for detector in detectors:
            events.extend(detector.update(record))
    for detector in detectors:
        events.extend(detector.finish())
    return latest(events)


def feed(
    detectors: list[Detector], records: Sequence[StepRecord], keep: Callable[[Event], object]
) -> list[tuple[Detector, Exception]]:
    """Shows records to detectors and keeps the events they raise; takes out, and returns, those that fail."""
    failed: list[tuple[Detector, Exception]] = []
    for detector in list(detectors):
        try:
            for record in records:
                for event in detector.update(record):
                    keep(event)
        except Exception as error:
            detectors.remove(detector)
            failed.append((detector, error))
    return failed
