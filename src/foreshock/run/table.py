"""A table as it is read: segments put together, what was rewound left out."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from itertools import repeat
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.run.absent import absent, is_absent, to_float64
from foreshock.run.layout import Segment
from foreshock.run.record import StepRecord

Floats = npt.NDArray[np.float64]
Steps = npt.NDArray[np.int64]
Selection = slice | npt.NDArray[np.intp]
_CHUNK = 1024  # records turned into Python numbers at a time


class Table:
    """Records of one cadence, with strictly increasing steps; columns are read when asked for.

    Args:
        segments: in the order in which they were written.
        selections: the rows of each that count; see `assemble`.
    """

    def __init__(self, segments: Sequence[Segment], selections: Sequence[Selection]) -> None:
        self._parts = tuple(zip(segments, selections, strict=True))
        self.columns: tuple[str, ...] = tuple(dict.fromkeys(name for segment in segments for name in segment.columns))
        self.steps: Steps = _joined((part.rows["step"][chosen] for part, chosen in self._parts), np.int64)
        self.steps.flags.writeable = False

    @property
    def times(self) -> Floats:
        """Seconds since the epoch of each record."""
        return _joined((part.rows["time"][chosen] for part, chosen in self._parts), np.float64)

    def column(self, name: str) -> Floats:
        """Returns the values of a column, (len(steps),), with the absent marker where it was not measured."""
        values = absent(len(self.steps))
        start = 0
        for segment, chosen in self._parts:
            count = len(segment.rows["step"][chosen])
            if name in segment.columns:
                stored = segment.rows["values"][:, segment.columns.index(name)][chosen]
                values[start : start + count] = to_float64(stored)
            start += count
        return values

    def matrix(self, names: Sequence[str]) -> npt.NDArray[Any]:
        """Returns the columns side by side, (len(steps), len(names)); a view of the file where that is possible."""
        if len(self._parts) == 1:
            segment, chosen = self._parts[0]
            first = segment.columns.index(names[0])
            if isinstance(chosen, slice) and segment.columns[first : first + len(names)] == tuple(names):
                view: npt.NDArray[Any] = segment.rows["values"][chosen, first : first + len(names)]
                return view
        return np.stack([self.column(name) for name in names], axis=1)

    def window(self, start: float, stop: float) -> Table:
        """Returns the records with start <= step < stop."""
        segments, selections = [], []
        for segment, chosen in self._parts:
            steps = segment.rows["step"][chosen]
            low, high = bisect_left(steps, start), bisect_left(steps, stop)  # numpy's would copy the whole column
            rows = segment.rows[chosen] if isinstance(chosen, slice) else segment.rows
            segments.append(Segment(segment.columns, rows))
            selections.append(slice(low, high) if isinstance(chosen, slice) else chosen[low:high])
        return Table(segments, selections)

    def segments(self) -> Iterator[Segment]:
        """Yields the records that count, segment by segment, copied where some in between do not."""
        for segment, chosen in self._parts:
            yield Segment(segment.columns, segment.rows[chosen])

    def records(self) -> Iterator[StepRecord]:
        """Yields the records with the values that were measured."""
        for segment in self.segments():
            names = segment.columns
            for first in range(0, len(segment.rows), _CHUNK):
                rows = segment.rows[first : first + _CHUNK]
                values = np.array(rows["values"])
                measured = _measured(names, values) if np.isnan(values).any() else _named(names, values)
                yield from map(StepRecord, rows["step"].tolist(), measured, rows["time"].tolist())


def assemble(segments: Sequence[Segment], rewinds: Iterable[tuple[int, int]] = ()) -> Table:
    """Returns the table that the segments make up when every rewind is followed.

    A record counts if no record written after it has the same or an earlier step: whoever goes back to a step
    replaces everything from there on.

    Args:
        segments: in the order in which they were written.
        rewinds: (records, step) pairs: of the first `records` records, those from `step` on do not count (the run
            was rewound while this table held that many).
    """
    steps = _joined((segment.rows["step"] for segment in segments), np.int64)
    rewinds = [(records, step) for records, step in rewinds if records and (steps[:records] >= step).any()]
    if not rewinds and (len(steps) < 2 or bool(np.all(steps[1:] > steps[:-1]))):
        return Table(segments, [slice(None)] * len(segments))
    later = np.minimum.accumulate(steps[::-1])[::-1]
    counts = np.ones(len(steps), np.bool_)
    counts[:-1] = steps[:-1] < later[1:]
    for records, step in rewinds:
        counts[:records] &= steps[:records] < step
    ends = np.cumsum([len(segment.rows) for segment in segments])
    pieces = np.split(counts, ends[:-1]) if len(segments) else []
    return Table(segments, [slice(None) if piece.all() else np.flatnonzero(piece) for piece in pieces])


def _named(names: Sequence[str], values: npt.NDArray[Any]) -> Iterator[dict[str, float]]:
    """Returns one dictionary a row; a run has many rows, so the loops are those of the built-ins."""
    return map(dict, map(zip, repeat(names), values.tolist()))


def _measured(names: Sequence[str], values: npt.NDArray[Any]) -> Iterable[dict[str, float]]:
    """Returns one dictionary a row without what is absent there; rows that lack the same columns are made together."""
    gone = is_absent(values)
    if not gone.any():
        return _named(names, values)
    packed = np.packbits(gone, axis=1)
    patterns = packed.view(np.dtype((np.void, packed.shape[1])))[:, 0]
    _, firsts, kinds = np.unique(patterns, return_index=True, return_inverse=True)
    result: list[dict[str, float]] = [{}] * len(values)
    for kind, first in enumerate(firsts):
        rows, columns = np.flatnonzero(kinds == kind), np.flatnonzero(~gone[first])
        some = _named([names[column] for column in columns.tolist()], values[np.ix_(rows, columns)])
        for row, fields in zip(rows.tolist(), some, strict=True):
            result[row] = fields
    return result


def _joined(parts: Iterable[npt.NDArray[Any]], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    arrays = [np.asarray(part, dtype) for part in parts]
    return np.ascontiguousarray(np.concatenate(arrays) if arrays else np.empty(0, dtype), dtype)
