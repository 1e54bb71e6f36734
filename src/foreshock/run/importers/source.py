"""The text of a log file, whatever it was packed or encoded in."""

from __future__ import annotations

import codecs
import gzip
import zlib
from pathlib import Path

from foreshock.errors import ImportFormatError

_MARKS = ((codecs.BOM_UTF8, "utf-8-sig"), (codecs.BOM_UTF16_LE, "utf-16"), (codecs.BOM_UTF16_BE, "utf-16"))
_KNOWN = {
    b"PAR1": "a Parquet file; write it as CSV first, e.g. pandas.read_parquet(...).to_csv(...)",
    b"PK\x03\x04": "a zip archive (or an Excel file); unpack it, or export it as CSV",
    b"SQLite format 3": "an SQLite database; export the metrics as CSV",
    b"\x89HDF": "an HDF5 file; export the metrics as CSV",
    b":W&B": "the offline record of W&B itself; sync it and export the history as CSV or JSON",
    b"\x80": "a pickle or torch checkpoint, not a log of a run",
}


def read_text(path: Path) -> str:
    """Returns the text of a file: gzip is unpacked; UTF-8 and UTF-16 with or without a mark, else Latin-1.

    Raises:
        ImportFormatError: it is empty, cannot be read, or is not text.
    """
    try:
        content = path.read_bytes()
        if content[:2] == b"\x1f\x8b":
            content = gzip.decompress(content)
    except (OSError, EOFError, zlib.error) as error:
        raise ImportFormatError(f"{path} cannot be read: {error}") from error
    for magic, what in _KNOWN.items():
        if content.startswith(magic):
            raise ImportFormatError(f"{path} is {what}")
    encoding = next((name for mark, name in _MARKS if content.startswith(mark)), "utf-8")
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        text = content.decode("latin-1")
    if not text.strip():
        raise ImportFormatError(f"{path} is empty: there is no run in it")
    if "\x00" in text or sum(char < " " and char not in "\t\n\r\f" for char in text[:4096]) > len(text[:4096]) // 100:
        raise ImportFormatError(f"{path} is not text; give a CSV, JSON or JSONL file, or say its format")
    return text
