"""What one event looked like: the window around it, which signals moved, which tensors."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreshock.report.columns import BOOKKEEPING, tensor_signals, wide_columns
from foreshock.report.departures import HISTORY, LOOKBACK, Departure, departures
from foreshock.report.heat import Heat, around
from foreshock.run import Run, is_absent
from foreshock.run.event import Event

HARM = ("nonfinite", "divergence", "spike", "drift")
"""Kinds that are damage; the others announce or explain it."""

Curve = tuple[NDArray[np.int64], NDArray[np.float64]]


@dataclass(frozen=True, slots=True)
class Span:
    """The steps that belong to one event's picture.

    Attributes:
        event: the event.
        first: first step shown.
        last: last step shown.
        read: first step needed to judge what is normal before the event; at most `first`.
        since: last step of the harmful event before; None where there is none.
    """

    event: Event
    first: int
    last: int
    read: int
    since: int | None

    @property
    def end(self) -> int:
        """Last step of the event; the last step shown while it is open."""
        return self.last if self.event.end is None else self.event.end


@dataclass(frozen=True, slots=True)
class Detail:
    """All the page tells about one event.

    Attributes:
        span: its steps.
        curves: column -> (steps, values) as measured within `span.read .. span.last`.
        wide: departures of the run-wide signals.
        tensors: departures of the per-tensor signals.
        heats: heat maps of the per-tensor signals, the one that moved most first.
    """

    span: Span
    curves: Mapping[str, Curve]
    wide: Sequence[Departure]
    tensors: Sequence[Departure]
    heats: Sequence[Heat]


def harmful(events: Sequence[Event]) -> list[Event]:
    """Returns the events that are damage, in the order in which `foreshock scan` numbers them from 1."""
    return [event for event in events if event.kind in HARM]


def span_of(run: Run, event: Event, events: Sequence[Event]) -> Span:
    """Returns the steps to show for an event: itself, twice its length before, its length after, within bounds."""
    steps = run.steps
    begin = int(np.searchsorted(steps, event.onset))
    end = int(np.searchsorted(steps, event.end, side="right")) if event.end is not None else len(steps)
    length = max(1, end - begin)
    first = max(0, begin - max(80, min(2 * length, 160), length // 2))
    last = min(len(steps), end + max(40, min(length, 80), length // 4))
    read = max(0, min(first, begin - HISTORY - LOOKBACK))
    harm = (other for other in events if other.kind in HARM)
    earlier = [other.end for other in harm if other.end is not None and other.end < event.onset]
    since = max(earlier, default=None)
    return Span(event, int(steps[first]), int(steps[last - 1]), int(steps[read]), since)


def gather(run: Run, span: Span) -> dict[str, Curve]:
    """Returns the run-wide curves within a span."""
    part = run.window(span.read, span.last + 1)
    return {column: part.measured(column) for column in wide_columns(run)}


def detail(run: Run, span: Span, curves: Mapping[str, Curve], *, rows: int = 24, columns: int = 240) -> Detail:
    """Returns the detail of one event.

    Args:
        run: the run.
        span: from `span_of`.
        curves: from `gather`.
        rows: most tensors in a heat map.
        columns: most columns in a heat map.
    """
    event = span.event
    wide: list[Departure] = []
    for column, (steps, values) in curves.items():
        if column in BOOKKEEPING:
            continue
        wide += departures((column,), steps, values[:, None], onset=event.onset, end=span.end, since=span.since)
    part = run.window(span.read, span.last + 1)
    tensors: list[Departure] = []
    heats: list[tuple[float, Heat]] = []
    for signal in tensor_signals(run):
        steps, names, stored = part.matrix(signal)
        table = np.asarray(stored, dtype=np.float64)
        full = tuple(f"{signal}/{name}" for name in names)
        gone = is_absent(stored)
        found = departures(full, steps, table, onset=event.onset, end=span.end, since=span.since, absent=gone)
        tensors += found if signal not in BOOKKEEPING else []
        shown = slice(int(np.searchsorted(steps, span.first)), len(steps))
        heat = around(signal, names, steps[shown], table[shown], before=event.onset, rows=rows, columns=columns)
        if heat is not None:
            best = max((item.score for item in found if item.score == item.score), default=0.0)
            heats.append((best, heat))
    heats.sort(key=lambda pair: -pair[0])
    return Detail(span, curves, wide, tensors, [heat for _, heat in heats])


def most_affected(found: Detail) -> Departure | None:
    """Returns the departure of the tensor that moved most, by gradient norm where it is known, else by any signal."""
    moved = [item for item in found.tensors if item.moved]
    by_gradient = [item for item in moved if item.column.startswith("grad_norm/")]
    return max(by_gradient or moved, key=_reach, default=None)


def _reach(item: Departure) -> tuple[float, float]:
    if item.before > 0 and item.extreme > 0:
        return (abs(float(np.log(item.extreme / item.before))), item.score)
    return (0.0, item.score)
