"""Tensors over time: how far each tensor's signal is from its own normal level, as a heat map.

A cell is ln(value / reference), the reference being the tensor's median before the event (or over the whole run), so
that tensors of any size are comparable: 0 is normal, ln 2 is twice. Signals that are not positive (cosines) show the
difference from the reference instead. A cell covers several steps: it shows their median, or the most extreme of them
where that is farther out than this tensor's extremes usually are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from foreshock.report import encode
from foreshock.report.decimate import edges
from foreshock.run import Run

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

UNUSUAL = 2.0  # times the 75 % quantile of a tensor's extremes beyond which a cell shows its extreme, not its median
CELLS_AT_ONCE = 4_000_000  # values of a per-tensor signal read at a time (32 MB)


@dataclass(frozen=True, slots=True)
class Heat:
    """One heat map.

    Attributes:
        signal: e.g. "grad_norm".
        names: (rows,) tensors shown, in model order.
        total: how many tensors the run has for this signal.
        starts: (columns,) first measured step of each column.
        stops: (columns,) last measured step of each column.
        stride: steps that one measurement stands for; where nothing follows within them, nothing was measured.
        values: (rows, columns) ln(value / reference), or differences where `ratio` is False.
        reference: (rows,) the level that is 0.
        ratio: whether cells are logarithms of ratios.
    """

    signal: str
    names: tuple[str, ...]
    total: int
    starts: Ints
    stops: Ints
    stride: int
    values: Floats
    reference: Floats
    ratio: bool

    def to_json(self) -> dict[str, object]:
        """Returns what the page draws it from."""
        return {
            "signal": self.signal,
            "names": list(self.names),
            "total": self.total,
            "starts": encode.steps(self.starts),
            "stops": encode.steps(self.stops),
            "stride": self.stride,
            "cells": encode.quantised(self.values),
            "reference": encode.floats(self.reference),
            "ratio": self.ratio,
        }


def around(
    signal: str, names: tuple[str, ...], steps: Ints, table: Floats, *, before: int, rows: int, columns: int
) -> Heat | None:
    """Returns the heat map of a window of records, or None where nothing was measured.

    Args:
        signal: name of the per-tensor signal.
        names: (units,) tensors.
        steps: (records,) increasing.
        table: (records, units) values.
        before: step of the onset; the reference is the median of the records before it.
        rows: most tensors to show: those that go farthest from their reference.
        columns: most columns.
    """
    if len(steps) == 0 or not np.isfinite(table).any():
        return None
    past = int(np.searchsorted(steps, before))
    past = past if past >= 3 else len(steps)
    ratio = _positive(table)
    reference = _median(table[:past])
    starts = edges(len(steps), columns)
    cells = _cells(_three(table, starts[:-1], starts[1:]), reference, ratio)
    times = steps[starts[:-1]], steps[starts[1:] - 1], _stride(steps)
    return _farthest(signal, names, times, cells, reference, ratio, rows)


def whole(run: Run, signal: str, *, rows: int, columns: int) -> Heat | None:
    """Returns the heat map of a whole run, each tensor against its own median over the run.

    The run is read in pieces, so that a million steps of hundreds of tensors need little memory; the median is then
    the median of the columns' medians.
    """
    units = run.tensors(signal)
    steps = run.steps
    if not units or len(steps) == 0:
        return None
    starts = edges(len(steps), columns)
    blocks: list[Floats] = []
    firsts: list[int] = []
    lasts: list[int] = []
    ratio, stride = True, 1
    per_piece = max(1, int(CELLS_AT_ONCE / len(units) / max(1, len(steps) / (len(starts) - 1))))
    for piece in range(0, len(starts) - 1, per_piece):
        bounds = starts[piece : piece + per_piece + 1]
        past_end = int(steps[bounds[-1]]) if bounds[-1] < len(steps) else int(steps[-1]) + 1
        found, names, stored = run.window(int(steps[bounds[0]]), past_end).matrix(signal)
        table = _in_order(np.asarray(stored, dtype=np.float64), names, units)
        known = np.isfinite(table).any(
            axis=1
        )  # a signal measured every k steps leaves columns empty: they are left out
        found, table = found[known], table[known]
        ends = np.searchsorted(found, [*steps[bounds[1:-1]], past_end])
        begins = np.concatenate(([0], ends[:-1]))
        begins, ends = begins[begins < ends], ends[begins < ends]
        if len(begins):
            firsts += found[begins].tolist()
            lasts += found[ends - 1].tolist()
            blocks.append(_three(table, begins, ends))
            ratio, stride = ratio and _positive(table), max(stride, _stride(found))
    if not blocks:
        return None
    three = np.concatenate(blocks)
    reference = _median(three[:, 1])
    cells = _cells(three, reference, ratio)
    times = np.array(firsts, dtype=np.int64), np.array(lasts, dtype=np.int64), stride
    return _farthest(signal, units, times, cells, reference, ratio, rows)


def _farthest(
    signal: str, names: tuple[str, ...], times: tuple[Ints, Ints, int], cells: Floats, reference: Floats, ratio: bool,
    rows: int,
) -> Heat:  # fmt: skip
    reach = np.nan_to_num(np.abs(cells), nan=-1.0).max(axis=0)
    chosen = np.sort(np.argsort(-reach, kind="stable")[:rows])
    return Heat(
        signal, tuple(names[j] for j in chosen), len(names), *times, cells[:, chosen].T, reference[chosen], ratio
    )


def _stride(steps: Ints) -> int:
    """Returns how many steps a measurement stands for: twice the usual distance to the next."""
    return 2 * int(np.quantile(np.diff(steps), 0.95, method="nearest")) if len(steps) > 1 else 1


def _positive(table: Floats) -> bool:
    """Whether values are magnitudes (a few exact zeros allowed: dead units), so that ratios make sense."""
    return not bool(np.any(table < 0))


def _against(table: Floats, reference: Floats, ratio: bool) -> Floats:
    with np.errstate(all="ignore"):
        result: Floats = np.log(table / reference) if ratio else table - reference
    return result


def _median(table: Floats, axis: int = 0) -> Floats:
    """Returns the median along an axis over finite values (the lower of two middles); NaN where there is none."""
    finite = np.isfinite(table)
    n = finite.sum(axis=axis, keepdims=True)
    ordered = np.sort(np.where(finite, table, np.inf), axis=axis)
    picked = np.take_along_axis(ordered, np.maximum(n - 1, 0) // 2, axis=axis)
    result: Floats = np.where(n > 0, picked, np.nan).squeeze(axis)
    return result


def _three(table: Floats, begins: Ints, ends: Ints) -> Floats:
    """Returns the smallest, the median and the largest value of each group of rows, (groups, 3, columns).

    Args:
        table: (rows, columns); a group without a value in a column gives NaN there.
        begins: (groups,) first rows.
        ends: (groups,) rows after the last.
    """
    index = begins[:, None] + np.arange(int(np.max(ends - begins)))
    groups = table[np.minimum(index, len(table) - 1)]  # (groups, longest, columns)
    groups[index >= ends[:, None]] = np.nan
    missing = np.isnan(groups)
    low = np.where(missing, np.inf, groups).min(axis=1)
    high = np.where(missing, -np.inf, groups).max(axis=1)
    middle = _median(groups, axis=1)
    three = np.stack((low, np.where(np.isnan(middle), high, middle), high), axis=1)
    three[np.broadcast_to(missing.all(axis=1)[:, None], three.shape)] = np.nan
    return three


def _cells(three: Floats, reference: Floats, ratio: bool) -> Floats:
    """Returns what each cell shows, (cells, tensors), given smallest, median and largest values (cells, 3, tensors)."""
    low, middle, high = (_against(three[:, place], reference, ratio) for place in range(3))
    with np.errstate(invalid="ignore"):
        up, down = (np.minimum(np.nan_to_num(side), 1e6) for side in (high - middle, middle - low))  # 0 has ln -inf
    over, under = (side / (UNUSUAL * np.quantile(side, 0.75, axis=0) + 1e-9) for side in (up, down))
    return np.where(np.maximum(over, under) <= 1, middle, np.where(over >= under, high, low))


def _in_order(table: Floats, names: tuple[str, ...], units: tuple[str, ...]) -> Floats:
    """Returns the columns of `table` in the order of `units`; tensors that this piece does not hold are NaN."""
    if tuple(names) == tuple(units):
        return table
    place = {name: j for j, name in enumerate(names)}
    result = np.full((len(table), len(units)), np.nan)
    for j, unit in enumerate(units):
        if unit in place:
            result[:, j] = table[:, place[unit]]
    return result
