"""Going back: a run that is resumed or rolled back writes steps again, and later records replace earlier ones.

Within a table the records themselves say so. Another table has a cadence of its own and is not written at the same
steps again, so the writer leaves a note when the step table goes back: `{"kind": "rewind", "step": 450, "records":
{"step": 612, "tensors": 7}}` says that of the first 7 records of "tensors", those from step 450 on no longer count. The
note is written before the record it announces, and holds only once that record is there.

Interventions are notes, written at once where records may wait for the next flush. So a note of kind "resumed" at step
450, with which a monitor begins to go on, ends those from step 450 on as well; where a writer goes back without one,
its rewind does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from foreshock.run.actions import KIND as ACTION
from foreshock.run.layout import Segment
from foreshock.run.table import Table, assemble

KIND = "rewind"
RESUMED = "resumed"


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
        if _holds(note, segments):
            for table, count in note["records"].items():
                if table != "step" and table in cuts:
                    cuts[table].append((count, note["step"]))
    return {table: assemble(parts, cuts[table]) for table, parts in segments.items()}


def standing(
    notes: Iterable[Mapping[str, Any]], segments: Mapping[str, Sequence[Segment]]
) -> list[Mapping[str, Any]]:
    """Returns the notes without the interventions that belong to steps which were gone back on."""
    kept: list[Mapping[str, Any]] = []
    begun: int | None = None  # number of notes there were when a monitor went on; its records come later

    def back(step: int, until: int) -> None:
        kept[:until] = [note for note in kept[:until] if note.get("kind") != ACTION or note.get("step", -1) < step]

    for note in notes:
        if note.get("kind") == RESUMED and isinstance(note.get("step"), int):
            back(note["step"], len(kept))
            begun = len(kept)
        elif _holds(note, segments):
            back(note["step"], len(kept) if begun is None else begun)
            begun = None
        kept.append(note)
    return kept


def resumed(segments: Mapping[str, Sequence[Segment]]) -> Rewinds:
    """Returns what the writer of these segments would remember."""
    records = {table: sum(len(part.rows) for part in parts) for table, parts in segments.items()}
    steps = [int(part.rows["step"][-1]) for part in segments.get("step", ()) if len(part.rows)]
    return Rewinds(records, steps[-1] if steps else None)


def _holds(note: Mapping[str, Any], segments: Mapping[str, Sequence[Segment]]) -> bool:
    """Returns whether a note says that the run went back, and it did."""
    if note.get("kind") != KIND or "records" not in note:
        return False
    step: int | None = _step_at(segments.get("step", ()), note["records"]["step"])
    return step is not None and step == note["step"]


def _step_at(parts: Sequence[Segment], record: int) -> int | None:
    for part in parts:
        if record < len(part.rows):
            return int(part.rows["step"][record])
        record -= len(part.rows)
    return None
