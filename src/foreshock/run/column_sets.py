"""Which columns a record is stored under when the set of measured signals changes during a run."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import UsageError
from foreshock.run.absent import absent, to_float64

Columns = tuple[str, ...]
_WIDTHS = (np.dtype(np.float32), np.dtype(np.float64))


class ColumnSets:
    """The column sets a table has seen.

    A set that is new starts a part of its own, stored exactly. A set that comes back (a probe that runs at every
    tenth step, say) is stored under the union of all sets so far, absent where it has no value: so the number of
    parts is bounded by twice the number of different sets, however often they alternate.

    Args:
        seen: the sets already stored, with their value type.
    """

    def __init__(self, seen: Iterable[tuple[Columns, np.dtype[Any]]] = ()) -> None:
        self._seen: dict[tuple[Columns, np.dtype[Any]], npt.NDArray[np.intp] | None] = dict.fromkeys(seen)
        self._union: Columns = ()
        self._value_type = np.dtype(np.float32)

    def place(self, columns: Columns, values: npt.NDArray[Any]) -> tuple[Columns, npt.NDArray[Any]]:
        """Returns the columns to store the values under, and the values spread over them.

        Args:
            columns: signal names, all different.
            values: (k, len(columns)) float32 or float64.
        """
        key = (columns, values.dtype)
        if key not in self._seen:
            if len(set(columns)) != len(columns):
                raise UsageError(f"column names must differ, got {columns!r}")
            self._seen = dict.fromkeys((*self._seen, key))  # the union grows: forget the places in the old one
            self._union = ()
            return columns, values
        if not self._union:
            self._union = tuple(dict.fromkeys(name for known, _ in self._seen for name in known))
            self._value_type = np.result_type(*(value_type for _, value_type in self._seen))
        index = self._seen[key]
        if index is None:
            place = {name: number for number, name in enumerate(self._union)}
            index = self._seen[key] = np.array([place[name] for name in columns], np.intp)
        spread = absent((len(values), len(self._union)), self._value_type)
        spread[:, index] = values if values.dtype == self._value_type else to_float64(values)
        return self._union, spread


def as_values(columns: Columns, steps: Sequence[int] | npt.NDArray[Any], values: npt.ArrayLike) -> npt.NDArray[Any]:
    """Returns the values as (k, n) float32 or float64 after checking that they match the steps and columns."""
    array = values if isinstance(values, np.ndarray) else np.asarray(values, np.float64)
    if array.shape != (len(steps), len(columns)):
        raise UsageError(f"values must have shape {(len(steps), len(columns))} (records, columns), got {array.shape}")
    return array if array.dtype in _WIDTHS else array.astype(np.float64)
