"""A run that is kept in memory only: what the monitor uses when it is given no directory."""

from __future__ import annotations

import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.run import rewind
from foreshock.run.column_sets import ColumnSets, as_values
from foreshock.run.event import Event
from foreshock.run.layout import FORMAT, Segment, record_dtype
from foreshock.run.load import RankData
from foreshock.run.run import Run


class RunMemory:
    """Takes what `RunWriter` takes and shows it as a `Run`; nothing touches the disk.

    Args:
        meta: metadata.
    """

    def __init__(self, meta: Mapping[str, Any] | None = None) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        self._meta: dict[str, Any] = {"id": uuid.uuid4().hex, "created": now} | dict(meta or {}) | {"format": FORMAT}
        self._tables: dict[str, list[_Growing]] = {}
        self._sets: dict[str, ColumnSets] = {}
        self._rewinds = rewind.Rewinds()
        self._events: list[Event] = []
        self._notes: list[dict[str, Any]] = []
        self._findings: list[dict[str, Any]] = []  # shared with the runs that are made of it, which add to it

    @property
    def id(self) -> str:
        """Identity of the run."""
        return str(self._meta["id"])

    def open(self) -> RunMemory:
        """Returns itself; there is nothing to open."""
        return self

    def append(
        self, table: str, columns: tuple[str, ...], steps: Sequence[int] | npt.NDArray[Any], times: npt.ArrayLike,
        values: npt.NDArray[Any],
    ) -> None:
        """Adds records to a table; see `RunWriter.append`."""
        values = as_values(columns, steps, values)
        parts = self._tables.setdefault(table, [])
        if not parts or parts[-1].columns != columns or parts[-1].value_type != values.dtype:
            columns, values = self._sets.setdefault(table, ColumnSets()).place(tuple(columns), values)
            if not parts or parts[-1].columns != columns or parts[-1].value_type != values.dtype:
                parts.append(_Growing(columns, values.dtype))
        if not len(values):
            return
        going_back = self._rewinds.before(table, int(steps[0]))
        if going_back is not None:
            self.note(rewind.KIND, **going_back)
        parts[-1].append(steps, times, values)
        self._rewinds.after(table, int(steps[-1]), len(values))

    def event(self, event: Event) -> None:
        """Adds a version of an event."""
        self._events.append(event)

    def note(self, kind: str, **fields: Any) -> None:
        """Adds another happening."""
        self._notes.append({"step": None, "time": time.time(), "kind": kind} | fields)

    def update_meta(self, **fields: Any) -> None:
        """Adds or replaces metadata."""
        self._meta |= {name: value for name, value in fields.items() if name not in ("format", "id")}

    def sync(self) -> None:
        """Does nothing: there is no disk."""

    def close(self) -> None:
        """Does nothing; the run stays readable."""

    def run(self) -> Run:
        """Returns the run so far; records added later do not show in it. Nothing is copied."""
        segments = {name: [part.segment() for part in parts] for name, parts in self._tables.items()}
        tables = rewind.follow(segments, self._notes)
        notes = rewind.standing(self._notes, segments)
        return Run({0: RankData(tables, tuple(self._events), notes)}, self._meta, found=self._findings)

    def __enter__(self) -> RunMemory:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Growing:
    """Records with one set of columns, in an array that doubles when it is full."""

    def __init__(self, columns: tuple[str, ...], value_type: np.dtype[Any]) -> None:
        self.columns = columns
        self.value_type = value_type
        self._rows: npt.NDArray[Any] = np.zeros(0, record_dtype(len(columns), value_type))
        self._count = 0

    def append(self, steps: npt.ArrayLike, times: npt.ArrayLike, values: npt.NDArray[Any]) -> None:
        end = self._count + len(values)
        if end > len(self._rows):
            grown = np.zeros(max(end, 2 * len(self._rows), 64), self._rows.dtype)
            grown[: self._count] = self._rows[: self._count]
            self._rows = grown
        rows = self._rows[self._count : end]
        rows["step"], rows["time"], rows["values"] = steps, times, values
        self._count = end

    def segment(self) -> Segment:
        return Segment(self.columns, self._rows[: self._count])
