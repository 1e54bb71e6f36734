"""How far, and how early, each signal leaves its own range around an event.

The range of a signal is learnt from records well before the event: its centre (a robust straight line, so that a trend
is not a departure) and its half-range (the 98 % quantile of the distance from it). Magnitudes are compared in
logarithms. `score` is the largest distance during the event in half-ranges; `first` is the step from which the signal
stays outside three half-ranges (7 standard deviations where the noise is Gaussian) until the event begins, having
gone ten by then; what only wanders does not count as an early sign.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

LOOKBACK = 60  # records before the onset that may already be part of the event's story
HISTORY = 120  # records before those, from which the range is learnt: recent ones, not the event before
RECENT = 30  # last records of the history, whose median is the level just before the event
LEFT = 3.0  # half-ranges beyond which a signal has left its range
CLEAR = 10.0  # half-ranges an early departure must reach by the onset: among 1000 random walks the farthest makes 9
STAYS = 0.7  # share of the records up to the onset that must be outside for an early departure to count
SMALLEST = 1e-2  # least half-range, relative to the level: less than 3 % is never a departure
CAP = 1e6  # scores are capped here, non-finite values score this


@dataclass(frozen=True, slots=True)
class Departure:
    """What one signal did around one event.

    Attributes:
        column: name of the signal, e.g. "v_ratio" or "v_ratio/fc.weight".
        score: largest distance from its centre during the event, in half-ranges of its own history; NaN where there
            was too little history.
        first: step at which it left its range; None where it did not.
        lead: `onset - first` in steps, positive where it moved before the loss; None where it did not leave.
        before: centre of the history just before the event.
        extreme: the value farthest from it during the event.
        low: lower end of its range just before the event, `LEFT` half-ranges below the centre.
        high: upper end.
    """

    column: str
    score: float
    first: int | None
    lead: int | None
    before: float
    extreme: float
    low: float = np.nan
    high: float = np.nan

    @property
    def moved(self) -> bool:
        """Whether the signal left its range at all."""
        return self.score > LEFT


def departures(
    columns: tuple[str, ...],
    steps: Ints,
    table: Floats,
    *,
    onset: int,
    end: int,
    since: int | None = None,
    absent: NDArray[np.bool_] | None = None,
) -> list[Departure]:
    """Returns one `Departure` per column, in the order given.

    Args:
        columns: (n,) names.
        steps: (rows,) increasing.
        table: (rows, n) values.
        onset: first step of the event.
        end: last step of the event.
        since: last step of the event before this one, whose records are kept out of the history if enough remain.
        absent: (rows, n) where nothing was measured; None for nowhere. A measured NaN is a departure.
    """
    start, stop = int(np.searchsorted(steps, onset)), int(np.searchsorted(steps, end, side="right"))
    look = max(0, start - min(LOOKBACK, start // 3))
    begin = max(0, look - HISTORY)
    if since is not None:
        begin = min(max(begin, int(np.searchsorted(steps, since, side="right"))), max(begin, look - 20))
    rows = slice(look, max(stop, look + 1))
    if look - begin < 5 or look >= len(steps):
        return [Departure(name, np.nan, None, None, np.nan, np.nan) for name in columns]
    distance, centre, low, high = _distance(table[begin : rows.stop], look - begin)
    during = table[rows]
    broken = np.isnan(during) & np.isfinite(centre)
    distance[broken if absent is None else broken & ~absent[rows]] = CAP
    at = np.argmax(np.where(np.isnan(distance), -1.0, distance), axis=0)
    extremes = during[at, np.arange(len(columns))]
    firsts = _first_outside(distance, start - look)
    result = []
    for j, name in enumerate(columns):
        score = float(distance[at[j], j])
        first = int(steps[look + firsts[j]]) if firsts[j] >= 0 else None
        lead = None if first is None else onset - first
        levels = float(centre[j]), float(extremes[j]), float(low[j]), float(high[j])
        result.append(Departure(name, score, first, lead, *levels))
    return result


def ranked(found: list[Departure]) -> list[Departure]:
    """Returns the departures that left their range, the largest score first, the earlier one first among equals."""
    moved = [item for item in found if item.moved]
    return sorted(moved, key=lambda item: (-item.score, -(item.lead if item.lead is not None else -1)))


def earliest(found: list[Departure]) -> Departure | None:
    """Returns the departure that came first, the larger score among equals; None where none left its range early."""
    early = [item for item in found if item.moved and item.lead is not None and item.lead > 0]
    return max(early, key=lambda item: (item.lead or 0, item.score), default=None)


def _distance(table: Floats, history: int) -> tuple[Floats, Floats, Floats, Floats]:
    """Returns distances of the rows after `history` in half-ranges, and the last centre, low and high of history."""
    with np.errstate(all="ignore"):
        logs = np.log(np.where(table > 0, table, np.nan))
        straight, curved = _fit(table, history), _fit(logs, history)
        positive = np.all(np.isnan(table) | (table > 0), axis=0)
        # Logarithms suit magnitudes, except those that run along a straight line (a schedule) far more closely.
        use_log = positive & (curved.spread <= 2 * straight.spread / np.abs(straight.middle))
        pick = [np.where(use_log, one, other) for one, other in zip(curved, straight, strict=True)]
        line, spread, slope, bend, middle, recent = pick
        work = np.where(use_log, logs, table)
        spread = np.maximum(spread, np.maximum(np.where(use_log, SMALLEST, SMALLEST * np.abs(middle)), 1e-12))
        # Allowed besides: what a curve that bends (a schedule, a decay) leaves its line by, and the held trend.
        beyond = np.arange(len(table) - history, dtype=float)[:, None]
        allowed = bend / 2 * (history / 2 + np.minimum(beyond, 2 * LOOKBACK)) ** 2 + np.abs(slope) * np.maximum(
            beyond - LOOKBACK, 0
        )
        away = np.maximum(np.abs(work[history:] - line[history:]) - allowed, 0)
        distance = np.minimum(away / spread, CAP)
        levels = (recent, recent - LEFT * spread, recent + LEFT * spread)
        back = [np.where(use_log, np.exp(np.minimum(level, 700.0)), level) for level in levels]
    distance[np.isinf(table[history:])] = CAP
    distance[:, np.isnan(middle)] = np.nan
    return distance, back[0], back[1], back[2]


class _Fit(NamedTuple):
    """A robust straight line through the history of each column, carried on for `LOOKBACK` rows, then held."""

    line: Floats  # (rows, columns)
    spread: Floats  # 98 % quantile of the distance from it
    slope: Floats  # per row
    bend: Floats  # magnitude of the second difference, per row squared
    middle: Floats
    recent: Floats  # median of the last rows of the history


def _fit(work: Floats, history: int) -> _Fit:
    past, rows = work[:history], np.arange(len(work), dtype=float)[:, None]
    past = np.where(np.isfinite(past), past, np.nan)
    third = max(1, history // 3)
    early, between, late = _median(past[:third]), _median(past[third:-third]), _median(past[-third:])
    known = np.isfinite(early) & np.isfinite(between) & np.isfinite(late)
    slope = np.where(known, (late - early) / max(1, history - third), 0.0)
    bend = np.where(known, np.abs(late - 2 * between + early) / third**2, 0.0)
    middle = _median(past - slope * rows[:history])
    line = middle + slope * np.minimum(rows, history + LOOKBACK)
    spread = _quantile(np.abs(past - line[:history]), 0.98)
    recent = _median(past[-RECENT:])
    return _Fit(line, spread, slope, bend, middle, np.where(np.isfinite(recent), recent, middle))


def _first_outside(distance: Floats, onset: int) -> NDArray[np.int64]:
    """Returns per column the row from which it stays outside until the onset, or the first after it, or -1."""
    rows, n = distance.shape
    outside, known = distance > LEFT, np.isfinite(distance)
    result = np.full(n, -1, dtype=np.int64)
    after = outside[onset:]
    if len(after):
        hit = after.any(axis=0)
        result[hit] = onset + after.argmax(axis=0)[hit]
    if onset > 0:
        reach = min(onset + 1, rows)  # up to and with the onset
        out = np.cumsum(outside[:reach][::-1], axis=0)[::-1]
        seen = np.cumsum(known[:reach][::-1], axis=0)[::-1]
        stays = outside[:reach] & (out >= STAYS * seen)
        clear = np.nan_to_num(distance[:reach], nan=0.0).max(axis=0) >= CLEAR
        early = stays.any(axis=0) & (result >= 0) & clear
        result[early] = stays.argmax(axis=0)[early]
    return result


def _median(table: Floats) -> Floats:
    return _quantile(table, 0.5)


def _quantile(table: Floats, q: float) -> Floats:
    """Returns the q-quantile per column over its finite values (nearest rank; NaN where there is none)."""
    rows = np.isfinite(table).sum(axis=0)
    ordered = np.sort(np.where(np.isfinite(table), table, np.inf), axis=0)
    if len(ordered) == 0:
        return np.full(table.shape[1], np.nan)
    at = np.clip(np.round(q * (rows - 1)).astype(np.int64), 0, len(ordered) - 1)
    picked: Floats = np.take_along_axis(ordered, at[None, :], axis=0)[0]
    return np.where(rows > 0, picked, np.nan)
