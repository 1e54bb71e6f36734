"""From a run directory to tables in memory (memory-mapped), with a list of what is wrong in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from foreshock.errors import CorruptRunError, RunError
from foreshock.run import directory, files, rewind
from foreshock.run.event import Event
from foreshock.run.layout import FORMAT
from foreshock.run.table import Table


@dataclass(frozen=True, slots=True)
class RankData:
    """What one rank recorded: its tables by name, every version of its events, its notes (see `rewind.standing`)."""

    tables: Mapping[str, Table]
    events: Sequence[Event] = ()
    notes: Sequence[Mapping[str, Any]] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """A run directory as read: the ranks' data, the metadata, what is damaged and what merely breaks off."""

    ranks: Mapping[int, RankData]
    meta: Mapping[str, Any]
    corrupt: Sequence[CorruptRunError]
    torn: Sequence[CorruptRunError]


def load(root: Path) -> Loaded:
    """Returns what a run directory holds.

    Raises:
        RunError: there is no run at that path, or it was written by a newer version.
    """
    document = root / directory.META
    numbers = directory.ranks_in(root) if root.is_dir() else ()
    if not numbers and not document.is_file():
        raise RunError(_no_run(root))
    fields, wrong = files.decode(document.read_bytes()) if document.is_file() else ({}, "is missing")
    if not wrong and fields["format"] > FORMAT:
        raise RunError(f"{document} has format {fields['format']}; this foreshock reads {FORMAT}. Update it.")
    corrupt = [CorruptRunError(f"{document} (byte 0) {wrong}: damaged, or edited by hand")] if wrong else []
    torn: list[CorruptRunError] = []
    ranks: dict[int, RankData] = {}
    for number in numbers:
        found = directory.read_rank(directory.rank_directory(root, number))
        segments, notes = found.segments, found.notes
        ranks[number] = RankData(rewind.follow(segments, notes), found.events, rewind.standing(notes, segments))
        corrupt += found.corrupt
        torn += found.torn
    return Loaded(ranks or {0: RankData({})}, fields, corrupt, torn)


def _no_run(path: Path) -> str:
    if not path.exists():
        return f"there is no run at {path}: no such directory"
    if not path.is_dir():
        return f"{path} is a file, not a run directory; `foreshock import` reads the logs of other tools"
    inside = sorted(entry.parent.name for entry in path.glob(f"*/{directory.META}"))
    more = ", ..." if len(inside) > 8 else ""
    hint = f"; there are runs inside it: {', '.join(inside[:8])}{more}" if inside else ""
    return f"{path} is not a run directory: it has no {directory.META}{hint}"
