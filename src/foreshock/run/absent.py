"""The marker of a value that was not measured: a quiet NaN with a payload of its own.

A table has one row a step and one column a signal, but not every signal is measured at every step. What was measured
may itself be NaN, so "not measured" needs its own bit pattern: 0x7fc0ab5e in float32, 0x7ff8ab5e00000000 in float64.
Arithmetic and plotting see an ordinary NaN.
"""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import UsageError

# The first pattern of each pair is the marker; the second is what a plain cast makes of the other width's marker
# (float32 keeps the top 23 bits of the payload), accepted so that a cast on the way never turns "absent" into "NaN".
_PATTERNS: dict[int, tuple[np.unsignedinteger[Any], np.unsignedinteger[Any]]] = {
    4: (np.uint32(0x7FC0AB5E), np.uint32(0x7FC55AF0)),
    8: (np.uint64(0x7FF8AB5E00000000), np.uint64(0x7FF8156BC0000000)),
}

ABSENT: float = struct.unpack("<d", struct.pack("<Q", 0x7FF8AB5E00000000))[0]
"""The float64 marker as a Python float; for arrays use `absent`, which knows both widths."""


def absent(shape: int | tuple[int, ...], dtype: npt.DTypeLike = np.float64) -> npt.NDArray[Any]:
    """Returns an array full of markers, in float32 or float64.

    >>> is_absent(absent(2, np.float32)).tolist()
    [True, True]
    """
    array = np.empty(shape, dtype)
    _bits(array).fill(_PATTERNS[array.itemsize][0])
    return array


def is_absent(array: npt.ArrayLike) -> npt.NDArray[np.bool_]:
    """Returns a mask of the same shape, true where the value is the marker; a measured NaN is not.

    >>> is_absent(np.array([1.0, np.nan, ABSENT])).tolist()
    [False, False, True]
    """
    values = np.asarray(array)
    marker, cast = _PATTERNS[values.itemsize] if values.dtype.kind == "f" and values.itemsize > 2 else (None, None)
    if marker is None:
        if values.dtype.kind in "iub":
            return np.zeros(values.shape, np.bool_)
        raise UsageError(f"is_absent takes float32 or float64 values, not {values.dtype}")
    bits = _bits(values)
    return np.asarray((bits == marker) | (bits == cast))


def to_float64(values: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Returns the values as a new float64 array in which absent values carry the float64 marker."""
    if values.dtype == np.float64:
        return np.array(values, np.float64)
    with np.errstate(invalid="ignore"):  # a signalling NaN raises the flag when it is widened
        wide = values.astype(np.float64)
    gone = np.isnan(wide)
    if gone.any():
        wide[is_absent(values)] = ABSENT
    return wide


def _bits(array: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Returns the bit patterns as unsigned integers (a view wherever the array allows one)."""
    if array.dtype not in (np.float32, np.float64):
        raise UsageError(f"values must be float32 or float64, not {array.dtype}")
    kind = np.dtype(np.uint32 if array.itemsize == 4 else np.uint64).newbyteorder(array.dtype.byteorder)
    return array.view(kind)
