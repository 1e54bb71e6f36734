"""One file pair of a table that is open for appending."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import RunError
from foreshock.run import files
from foreshock.run.layout import FORMAT, record_dtype, seal


class AppendFile:
    """A file that only grows by whole units, each written by one `os.write` on an O_APPEND descriptor.

    Args:
        path: the file; created where it does not exist.
        size: bytes of it that are sound; anything behind them (a torn tail) is cut off when it is opened.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self._fd = -1
        self._dirty = True

    def write(self, content: Any, unit: int) -> None:
        """Appends the content (a buffer of whole units of `unit` bytes).

        Where the disk takes only part of it, whole units are kept, the rest is cut off and RunError is raised: the
        file stays readable and a later write continues behind the last whole unit.
        """
        try:
            if self._dirty:
                self._restore()
            written = os.write(self._fd, content)
        except OSError as error:
            self._dirty = self._fd >= 0
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error
        self.size += written - written % unit
        if written != memoryview(content).nbytes:
            self._dirty = True
            try:
                self._restore()
            except OSError:
                pass  # stays dirty: the next write tries again before it appends
            raise RunError(
                f"the disk took only {written} of {memoryview(content).nbytes} bytes for {self.path}; the "
                f"{written // unit} whole records among them were kept. Make room; recording continues by itself."
            )

    def sync(self) -> None:
        """Forces what was written onto the disk."""
        if self._fd >= 0:
            try:
                os.fsync(self._fd)
            except OSError as error:
                raise RunError(f"cannot force {self.path} onto the disk: {error.strerror}") from error

    def close(self) -> None:
        """Closes the descriptor; a file that was never written to is not created."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._dirty = -1, True

    def _restore(self) -> None:
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        if os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, self.size)
        self._dirty = False


class TableFile:
    """Appends records with one set of columns to `stem.bin`, whose header is `stem.json`.

    Args:
        directory: of the rank.
        stem: "step", "step.1", ...
        columns: signal names.
        value_type: float32 or float64.
        records: sound records the file already holds; 0 writes the header first.
    """

    def __init__(
        self, directory: Path, stem: str, columns: tuple[str, ...], value_type: np.dtype[Any], *, records: int = 0
    ) -> None:
        self.columns = columns
        self.value_type = value_type
        self.header = directory / f"{stem}.json"
        self._record = record_dtype(len(columns), value_type)
        self._file = AppendFile(directory / f"{stem}.bin", records * self._record.itemsize)
        self._rows: npt.NDArray[Any] = np.empty(0, self._record)

    @property
    def records(self) -> int:
        """Number of whole records written so far."""
        return self._file.size // self._record.itemsize

    def write_header(self, table: str) -> None:
        """Renames the header into place; done once, before the first record."""
        value = self.value_type.newbyteorder("<").str
        fields = {"format": FORMAT, "table": table, "values": value, "columns": list(self.columns)}
        try:
            files.replace(self.header, files.encode_document(fields))
        except OSError as error:
            raise RunError(f"cannot write {self.header}: {error.strerror}") from error

    def append(self, steps: npt.ArrayLike, times: npt.ArrayLike, values: npt.NDArray[Any]) -> None:
        """Appends len(values) records with one system call; see `AppendFile.write` for a full disk."""
        count = len(values)
        if len(self._rows) < count:
            self._rows = np.zeros(count, self._record)
        rows = self._rows[:count]
        rows["step"] = steps
        rows["time"] = times
        rows["values"] = values
        seal(rows)
        self._file.write(memoryview(rows.view(np.uint8)), self._record.itemsize)

    def sync(self) -> None:
        """Forces the records onto the disk."""
        self._file.sync()

    def close(self) -> None:
        """Closes the file."""
        self._file.close()
