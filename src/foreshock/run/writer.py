"""The writer of a run directory: one per rank, append-only, readable by others at any moment."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping
from datetime import datetime, timezone
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import RunError, UsageError
from foreshock.run import files
from foreshock.run.directory import (
    META,
    last_segments,
    line_bytes,
    rank_directory,
    read_meta,
    steps_written,
)
from foreshock.run.event import Event
from foreshock.run.layout import FORMAT
from foreshock.run.table_file import AppendFile, TableFile

SYNC_SECONDS = 5.0  # a power cut costs at most this much; a kill costs nothing, the page cache survives it
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class RunWriter:
    """Writes a run directory; `open` or the `with` statement starts it.

    Args:
        path: the run directory; made where it does not exist.
        meta: metadata, JSON-like; kept in `run.json`, which rank 0 owns.
        rank: whose file this is; every rank writes into its own `rank-R` folder.
        resume: id of the run the directory holds, to continue it; None starts a new one.

    >>> with RunWriter("runs/a", {"name": "a"}) as writer:                                # doctest: +SKIP
    ...     writer.append("step", ("loss",), [0], [time.time()], np.array([[2.3]]))
    """

    def __init__(
        self, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None, *, rank: int = 0,
        resume: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.rank = rank
        self.id = ""
        self._given_meta = dict(meta or {})
        self._resume = resume
        self._meta: dict[str, Any] = {}
        self._directory = rank_directory(self.path, rank)
        self._tables: dict[str, TableFile] = {}
        self._pairs: dict[str, int] = {}
        self._last: dict[str, int] = {}
        self._events = AppendFile(self._directory / "events.jsonl")
        self._notes = AppendFile(self._directory / "notes.jsonl")
        self._synced = 0.0
        self._open = False

    def open(self) -> RunWriter:
        """Makes or joins the directory and returns itself.

        Raises:
            RunError: the directory holds another run, holds no run to resume, or cannot be written.
        """
        try:
            self.path.mkdir(parents=True, exist_ok=True)
            stored = read_meta(self.path) if (self.path / META).exists() else None
            if stored is None and self._resume is not None:
                raise RunError(f"{self.path} holds no run, so run {self._resume} cannot be resumed there. Start a new one.")
            if self._resume is not None and stored is not None and stored.get("id") != self._resume:
                raise RunError(
                    f"{self.path} holds run {stored.get('id')}, not run {self._resume}, which was to be resumed. "
                    "Give the directory of that run, or another one to start a new run."
                )
            if self._resume is None and self._directory.exists():
                raise self._occupied(stored or {})
            self._join(stored)
        except OSError as error:
            raise RunError(
                f"cannot write a run to {self.path}: {error.strerror}. Give a directory that can be written."
            ) from error
        self._synced = time.monotonic()
        self._open = True
        return self

    def append(
        self, table: str, columns: tuple[str, ...], steps: npt.ArrayLike, times: npt.ArrayLike, values: npt.NDArray[Any]
    ) -> None:
        """Appends records to a table with one system call.

        Args:
            table: "step" for run-wide signals, another name (such as "tensors") for signals of their own cadence.
            columns: signal names; a changed set starts a new file pair.
            steps: (k,) step numbers. Going back rewinds the run: the new records replace all from that step on.
            times: (k,) seconds since the epoch.
            values: (k, len(columns)) float32 or float64; `absent` marks what was not measured.

        Raises:
            RunError: the disk is full or not writable; whole records that were written stay, nothing is torn, and
                appending may simply go on when there is room again.
        """
        self._check_open()
        file = self._tables.get(table)
        if file is None or file.columns != columns or file.value_type != values.dtype:
            values = _as_values(values)
            file = self._start(table, tuple(columns), values)
        file.append(steps, times, values)
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self.sync()

    def event(self, event: Event) -> None:
        """Appends a version of an event."""
        self._check_open()
        line = files.encode_line(event.to_dict())
        self._events.write(line, len(line))

    def note(self, kind: str, **fields: Any) -> None:
        """Appends another happening, such as a probe that was disabled; `step` says when it happened."""
        self._check_open()
        line = files.encode_line({"step": None, "time": time.time(), "kind": kind} | fields)
        self._notes.write(line, len(line))

    def update_meta(self, **fields: Any) -> None:
        """Adds or replaces metadata and rewrites `run.json` as a whole; ranks above 0 leave that to rank 0."""
        self._check_open()
        if self.rank == 0:
            self._meta |= fields
            self._write_meta()

    def sync(self) -> None:
        """Forces everything written so far onto the disk (records survive a kill without it, not a power cut)."""
        self._synced = time.monotonic()
        for file in (*self._tables.values(), self._events, self._notes):
            file.sync()

    def close(self) -> None:
        """Syncs and closes the files; closing twice is fine."""
        if not self._open:
            return
        try:
            self.sync()
        finally:
            self._open = False
            for file in (*self._tables.values(), self._events, self._notes):
                file.close()

    def __enter__(self) -> RunWriter:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _occupied(self, stored: Mapping[str, Any]) -> RunError:
        name = f" {stored['name']!r}" if stored.get("name") else ""
        return RunError(
            f"{self.path} already holds run{name} {stored.get('id', '(unknown id)')} with "
            f"{steps_written(self._directory)} steps. Choose another directory, delete this one, or continue the run "
            f"with resume={stored.get('id')!r}."
        )

    def _join(self, stored: dict[str, Any] | None) -> None:
        now = datetime.now(timezone.utc).isoformat(timespec="seconds")
        fresh = {"format": FORMAT, "id": uuid.uuid4().hex, "created": now} | self._given_meta
        if stored is None:
            self._meta = fresh
            self._write_meta()
        else:
            kept = {name: stored[name] for name in ("format", "id", "created") if name in stored}
            self._meta = (stored | self._given_meta | kept) if self._resume else (fresh | kept)
            if self.rank == 0:
                self._write_meta()
        self.id = str(self._meta["id"])
        self._directory.mkdir(exist_ok=self._resume is not None)
        if self._resume is not None:
            self._continue()

    def _continue(self) -> None:
        for table, (pairs, segment, records) in last_segments(self._directory).items():
            self._pairs[table] = pairs
            if segment is not None:
                stem = _stem(table, pairs - 1)
                value_type = segment.rows.dtype["values"].base
                self._tables[table] = TableFile(self._directory, stem, segment.columns, value_type, records=records)
        self._events.size = line_bytes(self._events.path)
        self._notes.size = line_bytes(self._notes.path)

    def _start(self, table: str, columns: tuple[str, ...], values: npt.NDArray[Any]) -> TableFile:
        if not _TABLE_NAME.fullmatch(table):
            raise UsageError(f"a table name is made of letters, digits, - and _, not {table!r}")
        if len(set(columns)) != len(columns):
            raise UsageError(f"column names must differ, got {columns!r}")
        file = self._tables.get(table)
        if file is not None and file.columns == columns and file.value_type == values.dtype:
            return file
        pair = self._pairs.get(table, 0)
        fresh = TableFile(self._directory, _stem(table, pair), columns, values.dtype)
        fresh.write_header(table)
        if file is not None:
            file.close()
        self._tables[table] = fresh
        self._pairs[table] = pair + 1
        return fresh

    def _write_meta(self) -> None:
        try:
            files.replace(self.path / META, files.encode_document(self._meta))
        except OSError as error:
            raise RunError(f"cannot write {self.path / META}: {error.strerror}") from error

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(f"the writer of {self.path} is not open; call open() or use it in a with statement")


def _stem(table: str, pair: int) -> str:
    return table if pair == 0 else f"{table}.{pair}"


def _as_values(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    return values if values.dtype in (np.float32, np.float64) else values.astype(np.float64)
