"""From a run in memory to a run directory."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from foreshock.run import rewind
from foreshock.run.load import RankData
from foreshock.run.writer import RunWriter

_WRITE_BYTES = 16 << 20  # per system call


def save(path: Path, ranks: Mapping[int, RankData], meta: Mapping[str, Any]) -> None:
    """Writes a new run directory.

    Raises:
        RunError: the directory holds a run already, or cannot be written.
    """
    for rank, data in sorted(ranks.items()):
        with RunWriter(path, meta, rank=rank) as writer:
            meta = {**meta, "id": writer.id}
            for name, table in data.tables.items():
                for segment in table.segments():
                    stride = max(1, _WRITE_BYTES // segment.rows.dtype.itemsize)
                    for first in range(0, max(1, len(segment.rows)), stride):
                        rows = segment.rows[first : first + stride]
                        writer.append(name, segment.columns, rows["step"], rows["time"], rows["values"])
            for event in data.events:
                writer.event(event)
            for note in data.notes:
                if note.get("kind") != rewind.KIND:  # the tables were written as they stand after it
                    writer.note(**{"kind": "note", **note})
