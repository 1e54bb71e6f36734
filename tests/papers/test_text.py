"""Novels from a database of R that the tests write themselves."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import pytest

from foreshock.errors import ImportFormatError, MissingExtraError
from foreshock.papers.text import novels


def serialized(lines: list[str | None], version: int = 3) -> bytes:
    """A character vector in R's XDR format."""
    head = b"X\n" + struct.pack(">iii", version, 0x00040201, 0x00030500)
    if version >= 3:
        head += struct.pack(">i", 5) + b"UTF-8"
    body = struct.pack(">ii", 16, len(lines))
    for line in lines:
        text = b"" if line is None else line.encode()
        body += struct.pack(">ii", 0x00040009, -1 if line is None else len(text)) + text
    return head + body


def database(*records: bytes) -> bytes:
    return b"".join(struct.pack(">I", len(record)) + zlib.compress(record) for record in records)


OTHER = b"X\n" + struct.pack(">iiiii", 2, 0, 0, 13, 1) + struct.pack(">i", 7)  # an integer vector


@pytest.mark.parametrize("version", [2, 3])
def test_books_are_read_line_by_line_in_the_order_of_the_file(tmp_path, version):
    file = tmp_path / "Rdata.rdb"
    file.write_bytes(database(serialized(["Émma", "", "by"], version), OTHER, serialized(["£5", None], version)))
    assert novels(file) == novels(tmp_path) == "Émma\n\nby\n£5"


@pytest.mark.parametrize(
    "data",
    [
        b"nothing of the kind", database(serialized(["one"]))[:-3], database(OTHER), b"",
        struct.pack(">I", 99) + zlib.compress(serialized(["one"])), database(serialized(["one"])[:-1]),
        database(serialized(["one"])[:-9]),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, data):
    (tmp_path / "Rdata.rdb").write_bytes(data)
    with pytest.raises(ImportFormatError, match=r"Rdata\.rdb"):
        novels(tmp_path)


def test_without_the_package_it_is_said_what_to_install():
    with pytest.raises(MissingExtraError, match="apt install r-cran-janeaustenr"):
        novels(Path("no") / "such" / "place.rdb")
