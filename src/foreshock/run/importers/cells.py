"""From cells as a log file has them to numbers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

_NOTHING = {"", "none", "null", "n/a", "na", "-", "--", "undefined"}  # written where nothing was measured


@dataclass(frozen=True, slots=True)
class Numbers:
    """The numbers among some cells.

    Attributes:
        places: (k,) which cells hold them.
        values: (k,) the numbers; NaN and infinity as written.
        text: place of the first cell that is neither a number nor empty; -1 where there is none.
    """

    places: npt.NDArray[np.intp]
    values: npt.NDArray[np.float64]
    text: int


def numbers(cells: Sequence[Any], *, decimal_comma: bool = False) -> Numbers:
    """Returns the numbers among the cells: numbers, booleans, and text such as "1e-3", "NaN", "-Infinity".

    >>> numbers(["0.5", "", "NaN"]).values.tolist()
    [0.5, nan]
    """
    try:
        if not any(cell is None for cell in cells):
            values = np.array(cells, np.float64)
            if values.ndim == 1:
                return Numbers(np.arange(len(values)), values, -1)
    except (ValueError, TypeError, OverflowError):
        pass  # some cell is no plain number: look at each
    places, found, text = [], [], -1
    for place, cell in enumerate(cells):
        if cell is None or (isinstance(cell, str) and cell.strip().lower() in _NOTHING):
            continue
        try:
            found.append(float(cell.replace(",", ".") if decimal_comma and isinstance(cell, str) else cell))
            places.append(place)
        except (ValueError, TypeError, OverflowError):
            text = place if text < 0 else text
    return Numbers(np.array(places, np.intp), np.array(found, np.float64), text)
