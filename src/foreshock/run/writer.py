"""The writer of a run directory: one per rank, append-only, readable by others at any moment."""

from __future__ import annotations

import os
import re
import time
import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy.typing as npt

from foreshock.errors import RunError, UsageError
from foreshock.run import directory, files, lock, rewind
from foreshock.run.append import AppendFile, TableFile, sync_path
from foreshock.run.column_sets import ColumnSets, as_values
from foreshock.run.event import Event
from foreshock.run.layout import FORMAT
from foreshock.run.sync import BackgroundSync

SYNC_SECONDS = 5.0  # what a power cut may cost; a kill costs nothing, since the page cache outlives the process
_TABLE_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*")


class RunWriter:
    """Writes a run directory; `open` or the `with` statement starts it.

    Args:
        path: the run directory; made where it does not exist.
        meta: metadata as plain values, kept in `run.json`, which rank 0 owns. An "id" in it names the run.
        rank: whose files these are; every rank writes into its own `rank-R` folder.
        resume: id of the run the directory holds, to go on with it; None starts a new one.

    Attributes:
        id: identity of the run, known once it is open.

    >>> import tempfile, numpy as np
    >>> with tempfile.TemporaryDirectory() as folder, RunWriter(f"{folder}/a") as writer:
    ...     writer.append("step", ("loss",), [0, 1], [0.0, 0.0], np.array([[2.5], [2.0]]))
    """

    def __init__(
        self, path: str | os.PathLike[str], meta: Mapping[str, Any] | None = None, *, rank: int = 0,
        resume: str | None = None,
    ) -> None:
        self.path = Path(path)
        self.rank = rank
        self.id = ""
        self._resume = resume
        self._meta: dict[str, Any] = dict(meta or {})
        self._directory = directory.rank_directory(self.path, rank)
        self._tables: dict[str, TableFile] = {}
        self._pairs: dict[str, int] = {}
        self._sets: dict[str, ColumnSets] = {}
        self._rewinds = rewind.Rewinds()
        self._events = AppendFile(self._directory / "events.jsonl")
        self._notes = AppendFile(self._directory / "notes.jsonl")
        self._unsynced: list[Path] = []
        self._aside = BackgroundSync()
        self._synced = 0.0
        self._lock = -1
        self._open = False

    def open(self) -> RunWriter:
        """Makes or joins the directory and returns itself.

        Raises:
            RunError: the directory holds another run, does not hold the run to resume, is being written by another
                process, or cannot be written.
        """
        try:
            if self._resume is None:
                self._begin()
            else:
                self._continue(self._resume)
        except OSError as error:
            self._release()
            raise RunError(
                f"cannot write a run to {self.path}: {error.strerror}. Give a directory that can be written."
            ) from error
        except RunError:
            self._release()
            raise
        self._synced = time.monotonic()
        self._open = True
        return self

    def append(
        self, table: str, columns: tuple[str, ...], steps: Sequence[int] | npt.NDArray[Any], times: npt.ArrayLike,
        values: npt.NDArray[Any],
    ) -> None:
        """Appends records to a table with one system call.

        Args:
            table: "step" for run-wide signals, another name (such as "tensors") for signals of their own cadence.
                Whoever writes several writes "step" first: going back there rewinds all of them.
            columns: signal names; a changed set starts a new file pair.
            steps: (k,) step numbers, increasing. Going back to a step replaces all that was recorded from there on.
            times: (k,) seconds since the epoch.
            values: (k, len(columns)) float32 or float64; `absent` marks what was not measured.

        Raises:
            RunError: the disk is full or cannot be written. Whole records that were written stay, nothing is torn,
                and the same or later records may be appended when there is room again.
        """
        self._check_open()
        file = self._tables.get(table)
        values = as_values(columns, steps, values)
        known = file is not None and (file.columns is columns or file.columns == columns)
        if file is None or not known or file.value_type != values.dtype:
            file, values = self._file_for(table, columns, values)
        if not len(values):
            return
        going_back = self._rewinds.before(table, int(steps[0]))
        if going_back is not None:
            self.note(rewind.KIND, **going_back)
        file.append(steps, times, values)
        self._rewinds.after(table, int(steps[-1]), len(values))
        if time.monotonic() - self._synced > SYNC_SECONDS:
            self._sync_aside()

    def event(self, event: Event) -> None:
        """Appends a version of an event."""
        self._check_open()
        line = files.encode_line(event.to_dict())
        self._events.write(line, len(line))

    def note(self, kind: str, **fields: Any) -> None:
        """Appends another happening, such as a probe that was disabled; `step` says where in the run."""
        self._check_open()
        line = files.encode_line({"step": None, "time": time.time(), "kind": kind} | fields)
        self._notes.write(line, len(line))

    def update_meta(self, **fields: Any) -> None:
        """Adds or replaces metadata and rewrites `run.json` as a whole; ranks above 0 leave that to rank 0."""
        self._check_open()
        if self.rank == 0:
            self._meta |= {name: value for name, value in fields.items() if name not in ("format", "id")}
            try:
                self._write_meta()
            except OSError as error:
                raise RunError(f"cannot write {self.path / directory.META}: {error.strerror}") from error

    def sync(self) -> None:
        """Forces everything written so far onto the disk; `append` has that done every few seconds, without waiting."""
        self._synced = time.monotonic()
        self._aside.wait()
        for file in self._files():
            file.sync()
        while self._unsynced:
            sync_path(self._unsynced.pop())

    def _sync_aside(self) -> None:
        paths = [*(file.path for file in self._files()), *self._unsynced]
        if self._aside.start(paths):
            self._synced = time.monotonic()
            self._unsynced.clear()

    def close(self) -> None:
        """Syncs and closes the files; closing twice is fine."""
        if not self._open:
            return
        try:
            self.sync()
        finally:
            self._open = False
            self._release()

    def __enter__(self) -> RunWriter:
        return self.open()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _begin(self) -> None:
        now = datetime.now(UTC).isoformat(timespec="seconds")
        given = self._meta.get("id")
        self._meta = {"id": uuid.uuid4().hex, "created": now} | self._meta | {"format": FORMAT}
        self.path.mkdir(parents=True, exist_ok=True)
        document = self.path / directory.META
        if not files.create(document, files.encode_document(self._meta)):
            there = directory.read_meta(self.path)
            if self._directory.exists() or given not in (None, there.get("id")):
                raise self._occupied(there)
            self._meta |= {name: there[name] for name in ("id", "created") if name in there}
            if self.rank == 0:  # another rank came first and made the directory; the metadata is ours
                self._write_meta()
        self.id = str(self._meta["id"])
        try:
            self._directory.mkdir()
        except FileExistsError:
            raise self._occupied(self._meta) from None
        self._lock = lock.take(self._directory / ".lock")
        self._unsynced += [document, self.path, self._directory]

    def _continue(self, resume: str) -> None:
        there = directory.read_meta(self.path) if (self.path / directory.META).exists() else None
        if there is None:
            raise RunError(f"{self.path} holds no run, so run {resume} cannot go on there. Start a new one.")
        if there.get("id") != resume:
            holds = there.get("id", "of unknown id")
            raise RunError(
                f"{self.path} holds run {holds}, not run {resume} that was to go on. Give the directory of that run, "
                "or another directory to start a new one."
            )
        self.id = resume
        self._directory.mkdir(exist_ok=True)
        self._lock = lock.take(self._directory / ".lock")
        found = directory.read_rank(self._directory)
        for table, pairs in found.pairs.items():
            segments = found.segments[table]
            self._sets[table] = ColumnSets((part.columns, part.value_type) for part in segments)
            self._pairs[table] = pairs[-1].index + 1
            if pairs[-1].sound:  # a damaged pair is left alone: what follows the damage would not be read
                last, stem = segments[-1], _stem(table, pairs[-1].index)
                self._tables[table] = TableFile(
                    self._directory, stem, last.columns, last.value_type, records=len(last.rows)
                )
        self._rewinds = rewind.resumed(found.segments)
        for file in (self._events, self._notes):
            file.size = directory.whole_lines(file.path)
        for file in self._files():
            if file.path.exists():
                file.restore()
        self._meta = there | self._meta | {name: there[name] for name in ("id", "created") if name in there}
        self._meta["format"] = FORMAT
        if self.rank == 0:
            self._write_meta()

    def _file_for(
        self, table: str, columns: tuple[str, ...], values: npt.NDArray[Any]
    ) -> tuple[TableFile, npt.NDArray[Any]]:
        if not _TABLE_NAME.fullmatch(table):
            raise UsageError(f"a table name is made of letters, digits, - and _, not {table!r}")
        columns, values = self._sets.setdefault(table, ColumnSets()).place(tuple(columns), values)
        file = self._tables.get(table)
        if file is not None and file.columns == columns and file.value_type == values.dtype:
            return file, values
        pair = self._pairs.get(table, 0)
        fresh = TableFile(self._directory, _stem(table, pair), columns, values.dtype)
        fresh.write_header(table)
        if file is not None:
            file.file.sync()
            file.file.close()
        self._tables[table] = fresh
        self._pairs[table] = pair + 1
        self._unsynced += [fresh.header, self._directory]
        return fresh, values

    def _release(self) -> None:
        for file in self._files():
            file.close()
        if self._lock >= 0:
            os.close(self._lock)
            self._lock = -1

    def _files(self) -> list[AppendFile]:
        return [*(table.file for table in self._tables.values()), self._events, self._notes]

    def _write_meta(self) -> None:
        document = self.path / directory.META
        files.replace(document, files.encode_document(self._meta))
        self._unsynced.append(document)

    def _occupied(self, there: Mapping[str, Any]) -> RunError:
        name = f" {there['name']!r}" if there.get("name") else ""
        steps = directory.steps_written(self._directory)
        return RunError(
            f"{self.path} already holds run{name} {there.get('id', 'of unknown id')} with {steps} steps. Choose "
            f"another directory, delete this one, or go on with that run (resume={there.get('id')!r})."
        )

    def _check_open(self) -> None:
        if not self._open:
            raise UsageError(f"the writer of {self.path} is not open; call open() or use it in a with statement")


def _stem(table: str, pair: int) -> str:
    return table if pair == 0 else f"{table}.{pair}"
