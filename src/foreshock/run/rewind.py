"""Going back: a run that is resumed or rolled back writes steps again, and later records replace earlier ones.

Within a table the records themselves say so. Another table may have a slower cadence and not be written at the same
steps again, so the writer leaves a note when a table goes back, `{"kind": "rewind", "table": "step", "step": 450,
"records": {"step": 612, "tensors": 7}}`: of the first 7 records of "tensors", those from step 450 on no longer count.
The note is written before the record it announces, and holds only once that record is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from foreshock.run.layout import Segment
from foreshock.run.table import Table, assemble

KIND = "rewind"


class Rewinds:
    """What a writer remembers to notice that a table goes back.

    Args:
        records: number of records each table holds already.
        last: step of the last record of each table that has one.
    """

    def __init__(self, records: Mapping[str, int] | None = None, last: Mapping[str, int] | None = None) -> None:
        self._records = dict(records or {})
        self._last = dict(last or {})
        self._before: dict[str, int] = {}
        self._waiting: set[str] = set()

    def before(self, table: str, first: int) -> dict[str, Any] | None:
        """Returns the note to write before `table` appends a record of step `first`; None where it goes on.

        When several tables go back one after the other, it is one rewind: the numbers of records are those from
        before the first of them did.
        """
        waiting = table in self._waiting
        if waiting:
            self._waiting.discard(table)
        if first > self._last.get(table, first - 1):
            return None
        if not waiting:
            self._before = dict(self._records)
            self._waiting = set(self._records) - {table}
        return {"table": table, "step": first, "records": dict(self._before)}

    def after(self, table: str, last: int, count: int) -> None:
        """Takes note that `count` records were appended, the last of them of step `last`."""
        self._last[table] = last
        self._records[table] = self._records.get(table, 0) + count


def follow(segments: Mapping[str, Sequence[Segment]], notes: Iterable[Mapping[str, Any]]) -> dict[str, Table]:
    """Returns the tables as they stand after every rewind."""
    cuts: dict[str, list[tuple[int, int]]] = {table: [] for table in segments}
    for note in notes:
        if note.get("kind") != KIND or "records" not in note:
            continue
        origin, step, records = note["table"], note["step"], note["records"]
        if _step_at(segments.get(origin, ()), records[origin]) != step:
            continue
        for table, count in records.items():
            if table != origin and table in cuts:
                cuts[table].append((count, step))
    return {table: assemble(parts, cuts[table]) for table, parts in segments.items()}


def resumed(segments: Mapping[str, Sequence[Segment]]) -> Rewinds:
    """Returns what the writer of these segments would remember."""
    records = {table: sum(len(part.rows) for part in parts) for table, parts in segments.items()}
    last = {
        table: int(np.asarray(part.rows["step"][-1]))
        for table, parts in segments.items()
        for part in parts
        if len(part.rows)
    }
    return Rewinds(records, last)


def _step_at(parts: Sequence[Segment], record: int) -> int | None:
    for part in parts:
        if record < len(part.rows):
            return int(part.rows["step"][record])
        record -= len(part.rows)
    return None
