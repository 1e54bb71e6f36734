"""Real text to train on: the six novels of Jane Austen, out of the data file of the R package janeaustenr."""

from __future__ import annotations

import os
import struct
import zlib
from pathlib import Path

from foreshock.errors import ImportFormatError, MissingExtraError

__all__ = ["AUSTEN", "novels"]

AUSTEN = Path("/usr/lib/R/site-library/janeaustenr/data/Rdata.rdb")  # where Debian's r-cran-janeaustenr puts it

_STRINGS, _CHARS = 16, 9  # R's types of a character vector and of one string in it
_MISSING = -1  # length that stands for NA


def novels(path: str | os.PathLike[str] | None = None) -> str:
    """Returns the text of all novels, 4.03 million characters of 81 kinds, lines as they are wrapped in print.

    The file is R's lazy-load database: records one after the other, each four bytes of length and a zlib stream, which
    holds a serialized object in XDR (R Internals, section 1.8). The character vectors are read, one string a line, and
    everything else is passed over; R itself is not needed.

    Args:
        path: of `Rdata.rdb` or its folder; by default where Debian's package puts it.

    Raises:
        MissingExtraError: there is no such file.
        ImportFormatError: the file is something else.
    """
    place = Path(AUSTEN if path is None else path)
    place = place / "Rdata.rdb" if place.is_dir() else place
    try:
        data = place.read_bytes()
    except OSError as error:
        raise MissingExtraError(
            f"this training reads novels of Jane Austen, and there is no {place}: apt install r-cran-janeaustenr, or "
            "give the path of Rdata.rdb from any installation of the R package janeaustenr"
        ) from error
    try:
        books = [lines for record in _records(data) if (lines := _strings(record))]
    except (zlib.error, struct.error, UnicodeDecodeError, IndexError) as error:
        raise ImportFormatError(f"{place} is no database of R, or damaged: {error}") from error
    if not books:
        raise ImportFormatError(f"{place} holds no text")
    return "\n".join("\n".join(lines) for lines in books)


def _records(data: bytes) -> list[bytes]:
    """Returns the records of a database, decompressed."""
    found = []
    while data:
        (length,) = struct.unpack_from(">I", data)
        stream = zlib.decompressobj()
        found.append(stream.decompress(data[4:]))
        if not stream.eof or len(found[-1]) != length:
            raise IndexError(f"a record of {length} bytes breaks off")
        data = stream.unused_data
    return found


def _strings(record: bytes) -> list[str]:
    """Returns the strings of a serialized character vector; none of any other object."""
    if record[:2] != b"X\n":
        return []
    (version,) = struct.unpack_from(">i", record, 2)
    at = 14  # after the format, its version, and those of R that wrote it and that can read it
    if version >= 3:  # which names the encoding as well
        at += 4 + struct.unpack_from(">i", record, at)[0]
    kind, count = struct.unpack_from(">ii", record, at)
    if kind & 0xFF != _STRINGS:
        return []
    at += 8
    found = []
    for _ in range(count):
        kind, length = struct.unpack_from(">ii", record, at)
        if kind & 0xFF != _CHARS:
            raise IndexError("a string is expected")
        at += 8
        if length != _MISSING:
            if at + length > len(record):
                raise IndexError("a string breaks off")
            found.append(record[at : at + length].decode("utf-8"))
            at += length
    return found
