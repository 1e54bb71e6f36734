"""Going back: a run that is resumed or rolled back writes steps again, and later records replace earlier ones.

Within a table the records themselves say so. Another table has a cadence of its own and is not written at the same
steps again, so the writer leaves a note when the step table goes back: `{"kind": "rewind", "step": 450, "records":
{"step": 612, "tensors": 7}}` says that of the first 7 records of "tensors", those from step 450 on no longer count. The
note is written before the record it announces, and holds only once that record is there.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from foreshock.run.layout import Segment
from foreshock.run.table import Table, assemble

KIND = "rewind"


class Rewinds:
    """What a writer remembers to notice that the step table goes back.

    Args:
        records: number of records each table holds already.
        last: step of the last record of the step table, None where it has none.
    """

    def __init__(self, records: Mapping[str, int] | None = None, last: int | None = None) -> None:
        self._records = dict(records or {})
        self._last = last

    def before(self, table: str, first: int) -> dict[str, Any] | None:
        """Returns the note to write before `table` appends a record of step `first`; None where it goes on."""
        if table != "step" or self._last is None or first > self._last:
            return None
        return {"step": first, "records": dict(self._records)}

    def after(self, table: str, last: int, count: int) -> None:
        """Takes note that `count` records were appended, the last of them of step `last`."""
        self._records[table] = self._records.get(table, 0) + count
        if table == "step":
            self._last = last


def follow(segments: Mapping[str, Sequence[Segment]], notes: Iterable[Mapping[str, Any]]) -> dict[str, Table]:
    """Returns the tables as they stand after every rewind."""
    cuts: dict[str, list[tuple[int, int]]] = {table: [] for table in segments}
    for note in notes:
        if note.get("kind") != KIND or "records" not in note:
            continue
        step, records = note["step"], note["records"]
        if _step_at(segments.get("step", ()), records["step"]) == step:
            for table, count in records.items():
                if table != "step" and table in cuts:
                    cuts[table].append((count, step))
    return {table: assemble(parts, cuts[table]) for table, parts in segments.items()}


def resumed(segments: Mapping[str, Sequence[Segment]]) -> Rewinds:
    """Returns what the writer of these segments would remember."""
    records = {table: sum(len(part.rows) for part in parts) for table, parts in segments.items()}
    steps = [int(part.rows["step"][-1]) for part in segments.get("step", ()) if len(part.rows)]
    return Rewinds(records, steps[-1] if steps else None)


def _step_at(parts: Sequence[Segment], record: int) -> int | None:
    for part in parts:
        if record < len(part.rows):
            return int(part.rows["step"][record])
        record -= len(part.rows)
    return None
