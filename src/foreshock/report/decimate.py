"""Fewer points, the same extremes: min/max decimation.

Every bucket of consecutive points keeps its smallest and its largest value at their own positions, so a spike of one
step survives any decimation. (Methods that keep the look of a curve, such as LTTB, may drop it.)
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]


def keep(values: Floats, buckets: int) -> Ints:
    """Returns the indices to keep, increasing, at most `2 * buckets + 2` of them.

    The first and the last point are always kept; a bucket without a finite value keeps its first point, so that a
    gap in the curve stays a gap. Up to `2 * buckets` points everything is kept.

    Args:
        values: (n,) numbers, NaN and infinities allowed.
        buckets: how many groups of equally many points.
    """
    n = len(values)
    if n <= 2 * buckets:
        return np.arange(n, dtype=np.int64)
    size = -(-n // buckets)
    rows = -(-n // size)
    padded = np.full(rows * size, np.nan)
    padded[:n] = values
    grid = padded.reshape(rows, size)
    finite = np.isfinite(grid)
    start = np.arange(rows, dtype=np.int64) * size
    low = start + np.where(finite, grid, np.inf).argmin(axis=1)
    high = start + np.where(finite, grid, -np.inf).argmax(axis=1)
    kept = np.unique(np.concatenate((low, high, [0, n - 1])))
    return kept[kept < n].astype(np.int64)


def thin(positions: Ints, most: int) -> Ints:
    """Returns at most `most` of the given positions, evenly chosen, the first and the last among them."""
    if len(positions) <= most:
        return positions
    return positions[np.linspace(0, len(positions) - 1, most).round().astype(np.int64)]


def edges(n: int, buckets: int) -> Ints:
    """Returns the starts of at most `buckets` nearly equal groups of `n` rows, and `n` at the end."""
    return np.unique(np.linspace(0, n, min(n, buckets) + 1).round().astype(np.int64))
