"""Files that only grow by whole units: one system call each, and nothing torn is left behind."""

from __future__ import annotations

import contextlib
import errno
import os
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import RunError
from foreshock.run import files
from foreshock.run.layout import FORMAT, checksums, record_dtype

_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EROFS}  # file systems that have none


class AppendFile:
    """A file written by one `os.write` per append, on an O_APPEND descriptor; made by the first append.

    Args:
        path: the file.
        size: bytes of it that are sound; what lies behind them (a torn tail) is cut off.
    """

    def __init__(self, path: Path, size: int = 0) -> None:
        self.path = path
        self.size = size
        self._fd = -1
        self._restored = False

    def restore(self) -> None:
        """Opens the file and cuts off what lies behind its sound part.

        Raises:
            OSError: the file cannot be opened or cut.
        """
        if self._fd < 0:
            self._fd = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0), 0o666)
        if os.fstat(self._fd).st_size > self.size:
            os.ftruncate(self._fd, self.size)
        self._restored = True

    def write(self, content: bytes | memoryview, unit: int) -> None:
        """Appends whole units of `unit` bytes.

        Raises:
            RunError: the disk took none of it, or only a part. Whole units it took are kept, the rest is cut off: the
                file stays readable, and the next write goes on behind the last whole unit.
        """
        try:
            if not self._restored:
                self.restore()
            written = os.write(self._fd, content)
        except OSError as error:
            self._restored = False
            raise RunError(f"cannot write to {self.path}: {error.strerror}") from error
        if written == len(content):
            self.size += written
            return
        self.size += written - written % unit
        self._restored = False
        with contextlib.suppress(OSError):  # the next write tries again before it appends
            self.restore()
        raise RunError(
            f"the disk took {written} of {len(content)} bytes for {self.path}; {written // unit} of "
            f"{len(content) // unit} records were kept. Make room: later records are written again."
        )

    def sync(self) -> None:
        """Forces what was written onto the disk."""
        if self._fd >= 0:
            sync_descriptor(self._fd, self.path)

    def close(self) -> None:
        """Closes the descriptor; a later write opens it again."""
        if self._fd >= 0:
            os.close(self._fd)
        self._fd, self._restored = -1, False


class TableFile:
    """Appends records with one set of columns to `stem.bin`, whose header is `stem.json`.

    Args:
        directory: of the rank.
        stem: "step", "step.1", ...
        columns: signal names.
        value_type: float32 or float64.
        records: sound records the file already holds.
    """

    def __init__(
        self, directory: Path, stem: str, columns: tuple[str, ...], value_type: np.dtype[Any], *, records: int = 0
    ) -> None:
        self.columns = columns
        self.value_type = value_type
        self.header = directory / f"{stem}.json"
        self._record = record_dtype(len(columns), value_type)
        self.file = AppendFile(directory / f"{stem}.bin", records * self._record.itemsize)
        self._use(1)

    def write_header(self, table: str) -> None:
        """Renames the header into place; done once, before the first record.

        Raises:
            RunError: the directory cannot be written.
        """
        value = self.value_type.newbyteorder("<").str
        fields = {"format": FORMAT, "table": table, "values": value, "columns": list(self.columns)}
        try:
            files.replace(self.header, files.encode_document(fields))
        except OSError as error:
            raise RunError(f"cannot write {self.header}: {error.strerror}") from error

    def append(self, steps: npt.ArrayLike, times: npt.ArrayLike, values: npt.NDArray[Any]) -> None:
        """Appends len(values) records with one system call; see `AppendFile.write` for a full disk."""
        if len(values) != len(self._steps):
            self._use(len(values))
        self._steps[:] = steps
        self._times[:] = times
        self._values[:] = values
        self._sums[:] = checksums(self._bytes, self._record.itemsize)
        self.file.write(self._bytes, self._record.itemsize)

    def _use(self, count: int) -> None:
        """Makes the buffer that `count` records are put together in; kept, since most appends are equally long."""
        rows = np.zeros(count, self._record)
        self._steps, self._times, self._values, self._sums = (rows[name] for name in self._record.names or ())
        self._bytes = rows.view(np.uint8).data


def sync_path(path: Path) -> None:
    """Forces a small file, or the names in a directory, onto the disk."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return  # directories cannot be opened on every system; the file itself is safe without
    try:
        sync_descriptor(descriptor, path)
    finally:
        os.close(descriptor)


def sync_descriptor(descriptor: int, path: Path) -> None:
    """Forces an open file onto the disk.

    Raises:
        RunError: the disk failed to take it.
    """
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in _NO_FSYNC:
            raise RunError(f"cannot force {path} onto the disk: {error.strerror}") from error
