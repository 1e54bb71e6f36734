"""Arrays and text inside a page: base64 columns, and JSON that cannot end its script element."""

from __future__ import annotations

import base64
import json
import math
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

JSONValue = Any
_F4 = np.finfo(np.float32)


def floats(values: ArrayLike) -> str:
    """Returns float32 values, little endian, in base64; "8:" and float64 where float32 cannot hold them."""
    wide = np.asarray(values, dtype=np.float64)
    size = np.abs(wide[np.isfinite(wide) & (wide != 0)])
    if len(size) and (size.max() > _F4.max or size.max() < _F4.tiny):
        return "8:" + _base64(wide.astype("<f8"))
    return _base64(wide.astype("<f4"))


def steps(values: NDArray[np.int64]) -> JSONValue:
    """Returns step numbers as `[first, stride, n]` where evenly spaced, else as base64 offsets from the first.

    >>> steps(np.array([10, 12, 14]))
    [10, 2, 3]
    """
    n = len(values)
    if n == 0:
        return [0, 1, 0]
    first = int(values[0])
    stride = int(values[1]) - first if n > 1 else 1
    if n < 3 or bool(np.all(np.diff(values) == stride)):
        return [first, stride, n]
    span = int(values[-1]) - first
    if span < 2**32:
        return {"first": first, "u4": _base64((values - first).astype("<u4"))}
    return {"first": first, "f8": _base64((values - first).astype("<f8"))}


def quantised(table: NDArray[np.float64]) -> JSONValue:
    """Returns a table as 16-bit integers with one scale; NaN is -32768, infinities are +-32767 (and so flagged).

    Args:
        table: (rows, columns); finite values keep an absolute precision of 1/32000 of the largest magnitude.
    """
    finite = np.isfinite(table)
    largest = float(np.max(np.abs(table[finite]))) if finite.any() else 0.0
    unit = largest / 32000 if largest > 0 else 1.0
    whole = np.where(finite, np.round(np.where(finite, table, 0.0) / unit), 0).astype("<i2")
    whole[np.isposinf(table)] = 32767
    whole[np.isneginf(table)] = -32767
    whole[np.isnan(table)] = -32768
    return {"rows": table.shape[0], "columns": table.shape[1], "unit": unit, "i2": _base64(whole)}


def script_json(data: JSONValue) -> str:
    """Returns JSON that is safe inside a script element: no `<`, `>` or `&`, and non-finite numbers as strings."""
    text = json.dumps(plain(data), ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def plain(value: JSONValue) -> JSONValue:
    """Returns a JSON value of anything: NaN and infinities as "NaN", "inf", "-inf"; unknown objects as their text."""
    if isinstance(value, dict):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, np.generic):
        return plain(value.item())
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "inf" if value > 0 else "-inf"
    if value is None or isinstance(value, (str, int, float, bool)):
        return value
    return str(value)


def _base64(array: NDArray[Any]) -> str:
    return base64.b64encode(np.ascontiguousarray(array).tobytes()).decode("ascii")
