"""The table format: fixed-width records, each with its own checksum.

A table is a pair of files. `step.json` is the header: columns, value type, format version. `step.bin` holds the
records back to back, little-endian and without padding:

    step <i8   time <f8   values <f4 or <f8 (one per column)   crc32 <u4

so numpy alone reads it: `np.memmap(path, record_dtype(columns, value_type))`.

The checksum is zlib's CRC-32 of the bytes before it, started at `RESIDUE`. A message followed by its own CRC always
leaves the register at that constant, whatever it started from; started there, the register is back at `RESIDUE` after
every sound record. So one CRC over any stretch of whole records tells whether all of them are sound (an error in one
record moves the register and the rest of the stretch, a bijection, cannot move it back), at the speed of zlib and
without a loop over records; only a stretch that fails is searched record by record.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

FORMAT = 1
RESIDUE = 0x2144DF1C
_STRETCH = 1 << 20  # bytes checked by one CRC call: large enough that the Python call costs nothing


@dataclass(frozen=True, slots=True)
class Segment:
    """Records with one set of columns: one file pair, or the part of a run held in memory.

    Attributes:
        columns: signal names, in the order of the values.
        rows: (n,) structured array with the fields step (i8), time (f8) and values (f4 or f8, (len(columns),)), in
            the order in which they were written.
    """

    columns: tuple[str, ...]
    rows: npt.NDArray[Any]

    @property
    def value_type(self) -> np.dtype[Any]:
        """float32 or float64, in the machine's byte order."""
        return self.rows.dtype["values"].base.newbyteorder("=")


def record_dtype(columns: int, value_type: npt.DTypeLike) -> np.dtype[Any]:
    """Returns the packed numpy type of one record with that many values of `value_type` (float32 or float64).

    >>> record_dtype(50, np.float32).itemsize
    220
    """
    value = np.dtype(value_type).newbyteorder("<")
    return np.dtype([("step", "<i8"), ("time", "<f8"), ("values", value, (columns,)), ("crc32", "<u4")])


def checksums(body: memoryview, size: int) -> list[int]:
    """Returns the checksum of each record of `size` bytes, computed over all of it but its last field."""
    crc32 = zlib.crc32
    return [crc32(body[start : start + size - 4], RESIDUE) for start in range(0, len(body), size)]


def sound_records(body: memoryview, size: int) -> int:
    """Returns how many records of `size` bytes are sound before the first that is not (or before the end)."""
    total = len(body) // size
    stride = max(1, _STRETCH // size)
    for first in range(0, total, stride):
        last = min(first + stride, total)
        if zlib.crc32(body[first * size : last * size], RESIDUE) != RESIDUE:
            for record in range(first, last):
                if zlib.crc32(body[record * size : (record + 1) * size], RESIDUE) != RESIDUE:
                    return record
    return total
