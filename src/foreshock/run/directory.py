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
_PAIR = re.compile(r"([A-Za-z_][A-Za-z0-9_-]*)(?:\.(\d+))?\.(?:json|bin)")
_RANK = re.compile(r"rank-(\d+)")


@dataclass(frozen=True, slots=True)
class Pair:
    """A file pair: its number in the table, its records (None where the header is lost), and whether all is sound."""

    index: int
    segment: Segment | None
    sound: bool


@dataclass(slots=True)
class RankFiles:
    """What one rank's folder holds.

    Attributes:
        pairs: table name -> its file pairs, in the order in which they were written.
        events: every version of every event, as written.
        notes: the other happenings, as written.
        torn: what breaks off at the end of a file, as a kill leaves it.
        corrupt: what is damaged.
    """

    pairs: dict[str, list[Pair]] = field(default_factory=dict)
    events: list[Event] = field(default_factory=list)
    notes: list[dict[str, Any]] = field(default_factory=list)
    torn: list[CorruptRunError] = field(default_factory=list)
    corrupt: list[CorruptRunError] = field(default_factory=list)

    @property
    def segments(self) -> dict[str, list[Segment]]:
        """The readable segments of each table, in the order in which they were written."""
        return {table: [pair.segment for pair in pairs if pair.segment] for table, pairs in self.pairs.items()}


def rank_directory(path: Path, rank: int) -> Path:
    """Returns the folder of a rank."""
    return path / f"rank-{rank}"


def ranks_in(path: Path) -> tuple[int, ...]:
    """Returns the ranks that have a folder, ascending."""
    return tuple(sorted(int(match[1]) for entry in path.iterdir() if (match := _RANK.fullmatch(entry.name))))


def read_meta(path: Path) -> dict[str, Any]:
    """Returns the metadata of a run directory, as much as can be read of it."""
    return files.decode((path / META).read_bytes())[0]


def read_rank(directory: Path) -> RankFiles:
    """Returns everything a rank's folder holds; damage is collected, not raised.

    Raises:
        RunError: a file is in the format of a newer version.
    """
    found = RankFiles()
    for table, indexed in _stems(directory).items():
        found.pairs[table] = [_read_pair(directory / stem, index, found) for index, stem in indexed]
    for fields, place in _lines(directory / "events.jsonl", found):
        try:
            found.events.append(Event.from_dict(fields))
        except KeyError as error:
            found.corrupt.append(CorruptRunError(f"{place} is not an event: {error} is missing"))
    found.notes = [fields for fields, _ in _lines(directory / "notes.jsonl", found)]
    return found


def steps_written(directory: Path) -> int:
    """Returns the number of records in the step table, from the file sizes alone."""
    total = 0
    for _, stem in _stems(directory).get("step", []):
        path = directory / f"{stem}.bin"
        header = path.with_suffix(".json")
        if path.exists() and header.exists() and (fields := files.decode(header.read_bytes())[0]):
            total += path.stat().st_size // record_dtype(len(fields["columns"]), fields["values"]).itemsize
    return total


def whole_lines(path: Path) -> int:
    """Returns the bytes up to and including the last newline."""
    return path.read_bytes().rfind(b"\n") + 1 if path.exists() else 0


def _read_pair(stem: Path, index: int, found: RankFiles) -> Pair:
    header, path = stem.with_name(f"{stem.name}.json"), stem.with_name(f"{stem.name}.bin")
    fields, wrong = files.decode(header.read_bytes()) if header.exists() else ({}, "is missing")
    if wrong:
        found.corrupt.append(CorruptRunError(f"{header} (byte 0) {wrong}; the records of {path.name} are lost with it"))
        return Pair(index, None, False)
    if fields["format"] > FORMAT:
        raise RunError(f"{header} has format {fields['format']}; this version of foreshock reads {FORMAT}. Update it.")
    columns = tuple(fields["columns"])
    record = record_dtype(len(columns), fields["values"])
    total, torn = divmod(path.stat().st_size if path.exists() else 0, record.itemsize)
    rows: Any = np.memmap(path, record, "r", shape=(total,)) if total else np.empty(0, record)
    sound = sound_records(rows.view(np.uint8).data, record.itemsize) if total else 0
    if sound < total:
        found.corrupt.append(
            CorruptRunError(
                f"{path} is damaged in the record at byte {sound * record.itemsize}: {sound} records before it were "
                f"read, {total - sound} from there on were not"
            )
        )
    elif torn:
        place = total * record.itemsize
        found.torn.append(CorruptRunError(f"{path} breaks off inside the record at byte {place}, {torn} bytes into it"))
    return Pair(index, Segment(columns, rows[:sound]), sound == total)


def _stems(directory: Path) -> dict[str, list[tuple[int, str]]]:
    """Returns table -> (index, file name without its ending) of each pair, in order; one file of the two is enough."""
    found: dict[str, set[tuple[int, str]]] = {}
    for entry in directory.iterdir() if directory.exists() else ():
        if match := _PAIR.fullmatch(entry.name):
            found.setdefault(match[1], set()).add((int(match[2] or 0), entry.name.rpartition(".")[0]))
    return {table: sorted(stems) for table, stems in sorted(found.items())}


def _lines(path: Path, found: RankFiles) -> Iterator[tuple[dict[str, Any], str]]:
    if not path.exists():
        return
    *whole, rest = path.read_bytes().split(b"\n")
    offset = 0
    for line in whole:
        place = f"{path} (byte {offset})"
        fields, wrong = files.decode(line)
        if wrong:
            found.corrupt.append(CorruptRunError(f"{place} {wrong}; this line was left out"))
        else:
            yield fields, place
        offset += len(line) + 1
    if rest:
        found.torn.append(CorruptRunError(f"{path} breaks off inside the line at byte {offset}"))
