"""Reading the files of a run directory, damaged or not, also while they are written."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from foreshock.errors import CorruptRunError, RunError
from foreshock.run import files
from foreshock.run.event import Event
from foreshock.run.layout import FORMAT, Segment, record_dtype, sound_records

META = "run.json"
_HEADER = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)(?:\.(\d+))?\.json")


@dataclass(slots=True)
class RankFiles:
    """What one rank's folder holds.

    Attributes:
        segments: table name -> its sound segments, in the order in which they were written.
        events: every version of every event, as written.
        notes: the other happenings, as written.
        torn: what breaks off at the end of a file, as a kill leaves it.
        corrupt: what is damaged.
    """

    segments: dict[str, list[Segment]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    torn: list[CorruptRunError] = field(default_factory=list)
    corrupt: list[CorruptRunError] = field(default_factory=list)


def rank_directory(path: Path, rank: int) -> Path:
    """Returns the folder of a rank."""
    return path / f"rank-{rank}"


def ranks_in(path: Path) -> tuple[int, ...]:
    """Returns the ranks that have a folder, ascending."""
    found = (re.fullmatch(r"rank-(\d+)", entry.name) for entry in path.iterdir())
    return tuple(sorted(int(match[1]) for match in found if match))


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the metadata of a run directory, as much as can be read of it."""
    return files.decode((path / META).read_bytes())[0]


def read_rank(directory: Path) -> RankFiles:
    """Returns everything a rank's folder holds; damage is collected, not raised."""
    found = RankFiles()
    for table, pairs in _pairs(directory).items():
        segments = found.segments.setdefault(table, [])
        for header in pairs:
            segment = read_pair(header, found)
            if segment is not None:
                segments.append(segment)
    for fields, place in _lines(directory / "events.jsonl", found):
        try:
            found.events.append(Event.from_dict(fields))
        except (KeyError, TypeError) as error:
            found.corrupt.append(CorruptRunError(f"{place} is not an event: {error!r} is missing"))
    found.notes = [fields for fields, _ in _lines(directory / "notes.jsonl", found)]
    return found


def read_pair(header: Path, found: RankFiles) -> Segment | None:
    """Returns the sound records of a file pair, memory-mapped; None where the header cannot be read."""
    fields, wrong = files.decode(header.read_bytes())
    if wrong:
        found.corrupt.append(CorruptRunError(f"{header} (byte 0) {wrong}; its records cannot be read"))
        return None
    if fields["format"] > FORMAT:
        raise RunError(f"{header} is in format {fields['format']}, written by a newer foreshock; this one reads {FORMAT}")
    columns = tuple(fields["columns"])
    record = record_dtype(len(columns), fields["values"])
    path = header.with_suffix(".bin")
    size = path.stat().st_size if path.exists() else 0
    total, torn = divmod(size, record.itemsize)
    if total == 0:
        rows: Any = np.empty(0, record)
    else:
        rows = np.memmap(path, record, "r", shape=(total,))
        sound = sound_records(memoryview(rows.view(np.uint8)), record.itemsize)
        if sound < total:
            found.corrupt.append(
                CorruptRunError(
                    f"{path} is damaged in the record at byte {sound * record.itemsize}; the {sound} records before "
                    f"it were read, {total - sound} from there on were not"
                )
            )
            return Segment(columns, rows[:sound])
    if torn:
        found.torn.append(
            CorruptRunError(f"{path} breaks off inside the record at byte {total * record.itemsize} ({torn} bytes)")
        )
    return Segment(columns, rows)


def last_segments(directory: Path) -> dict[str, tuple[int, Segment | None, int]]:
    """Returns, per table, the number of pairs, the last one (None where it is damaged) and its whole records."""
    found: dict[str, tuple[int, Segment | None, int]] = {}
    for table, pairs in _pairs(directory).items():
        report = RankFiles()
        segment = read_pair(pairs[-1], report)
        count = int(_index(pairs[-1])) + 1
        found[table] = (count, None if report.corrupt or segment is None else segment, len(segment.rows) if segment else 0)
    return found


def steps_written(directory: Path) -> int:
    """Returns the number of records in the step table, from the file sizes alone."""
    total = 0
    for header in _pairs(directory).get("step", []):
        fields = files.decode(header.read_bytes())[0]
        path = header.with_suffix(".bin")
        if path.exists() and fields:
            total += path.stat().st_size // record_dtype(len(fields["columns"]), fields["values"]).itemsize
    return total


def line_bytes(path: Path) -> int:
    """Returns the bytes up to and including the last newline."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _pairs(directory: Path) -> dict[str, list[Path]]:
    found: dict[str, list[Path]] = {}
    headers = [entry for entry in directory.iterdir() if _HEADER.fullmatch(entry.name)] if directory.exists() else []
    for header in sorted(headers, key=_index):
        found.setdefault(header.name.split(".")[0], []).append(header)
    return found


def _index(header: Path) -> int:
    match = _HEADER.fullmatch(header.name)
    return int(match[2] or 0) if match else 0


def _lines(path: Path, found: RankFiles) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.exists():
        return
    *whole, rest = path.read_bytes().split(b"\n")
    offset = 0
    for line in whole:
        fields, wrong = files.decode(line)
        if wrong:
            found.corrupt.append(CorruptRunError(f"{path} (byte {offset}) {wrong}; the lines before it were read"))
            return
        yield fields, f"{path} (byte {offset})"
        offset += len(line) + 1
    if rest:
        found.torn.append(CorruptRunError(f"{path} breaks off inside the line at byte {offset}"))
