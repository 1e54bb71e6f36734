"""From the columns of a log file to a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import CorruptRunError, ImportFormatError
from foreshock.run.absent import absent
from foreshock.run.arrays import tables_from_columns
from foreshock.run.importers.cells import Numbers, numbers
from foreshock.run.importers.names import choose, listed
from foreshock.run.load import RankData
from foreshock.run.run import Run

_SHUFFLED = 0.25  # more steps back than this share of the losses is another order of rows, not a resumed run
_EPOCHS = 3  # so many times back to the same step is a step counted within the epoch, not a run that was resumed
_EPOCH_SECONDS = 1e8  # larger than any duration in seconds, smaller than any date since 1973
_MILLISECONDS = 1e11
_NO_STEP = np.iinfo(np.int64).min


@dataclass(slots=True)
class Log:
    """A log file as read, before it is understood.

    Attributes:
        path: the file.
        lines: line number (or number of the entry) of each row, for messages.
        columns: name -> (row numbers, cells); what a row lacks is not listed.
        meta: what the file says about the run.
        problems: what breaks off in it.
        decimal_comma: whether "0,5" is a number.
        row: what a row is called in messages.
    """

    path: Path
    lines: Sequence[int]
    columns: dict[str, tuple[Sequence[int], Sequence[Any]]]
    meta: dict[str, Any] = field(default_factory=dict)
    problems: list[CorruptRunError] = field(default_factory=list)
    decimal_comma: bool = False
    row: str = "line"


def build(log: Log, form: str, columns: Mapping[str, str] | None) -> Run:
    """Returns the run in a log.

    Rows of one step are one record. Where the steps of the loss go back, the run was resumed, and later rows replace
    earlier ones; where they go back all the time, the rows are merely in another order. A row without a loss (of an
    evaluation, say) joins the record of its step wherever it stands; one that has no step either is left out.

    Raises:
        ImportFormatError: no column is the loss, a step or a loss is not a number, or there are no rows.
    """
    if not len(log.lines):
        raise ImportFormatError(f"{log.path} holds no rows: there is no run in it")
    chosen = choose(log.columns, columns, log.path)
    if "loss" not in chosen:
        raise ImportFormatError(
            f"{log.path} has no column that looks like the training loss; it has: {listed(log.columns)}. Say which "
            "one it is, e.g. columns={'loss': 'train/ce'} (on the command line: --column loss=train/ce)."
        )
    parsed: dict[str, Numbers] = {}
    left_out: dict[str, str] = {}
    for name, (rows, cells) in log.columns.items():
        found = numbers(cells, decimal_comma=log.decimal_comma)
        if found.text >= 0:
            place = f"{log.row} {log.lines[rows[found.text]]}"
            if name in (chosen["loss"], chosen.get("step"), *(columns or {}).values()):
                raise ImportFormatError(f"{log.path}, {place}: {cells[found.text]!r} in {name!r} is not a number")
            left_out[name] = f"text at {place}: {str(cells[found.text])[:40]!r}"
        elif len(found.values):
            parsed[name] = Numbers(np.asarray(rows, np.intp)[found.places], found.values, -1)
    if chosen["loss"] not in parsed:
        raise ImportFormatError(f"{log.path} has a column {chosen['loss']!r} for the loss, but no number in it")
    row_steps, chosen = _steps(log, parsed, chosen)
    steps, record = _records(row_steps, parsed[chosen["loss"]].places)
    times = np.zeros(len(steps))
    stamps = parsed.get(chosen.get("time", ""))
    if stamps is None or not _are_dates(stamps.values):
        chosen.pop("time", None)
    else:
        there = record[stamps.places] >= 0
        seconds = stamps.values[there] / (1000 if np.nanmedian(stamps.values) > _MILLISECONDS else 1)
        times[record[stamps.places][there]] = np.nan_to_num(seconds, nan=0.0, posinf=0.0, neginf=0.0)
    names = _final_names(parsed, chosen)
    values: dict[str, npt.NDArray[Any]] = {}
    for name, found in parsed.items():
        if name not in (chosen.get("step"), chosen.get("time")):
            there = record[found.places] >= 0
            column = values[names[name]] = absent(len(steps))
            column[record[found.places][there]] = found.values[there]
    if left_out:
        log.meta["left_out"] = left_out
    return finish(log, form, steps, times, values)


def finish(
    log: Log, form: str, steps: npt.NDArray[np.int64], times: npt.NDArray[Any], values: Mapping[str, npt.NDArray[Any]]
) -> Run:
    """Returns the run made of whole columns, in the order of writing, "loss" and the other signals first."""
    first = [name for name in ("loss", "grad_norm", "lr") if name in values]
    ordered = {name: values[name] for name in (*first, *values)}
    meta = {"name": log.path.stem, "imported": {"format": form, "path": str(log.path)}} | log.meta
    return Run({0: RankData(tables_from_columns(ordered, steps, times))}, meta, problems=log.problems)


def _steps(
    log: Log, parsed: Mapping[str, Numbers], chosen: dict[str, str]
) -> tuple[npt.NDArray[np.int64], dict[str, str]]:
    """Returns the step of each row (`_NO_STEP` where it has none), and the chosen columns.

    Where the rows themselves are counted, no step is among the columns.

    Raises:
        ImportFormatError: a step is not a whole number, or a row has a loss but no step.
    """
    count = len(log.lines)
    name = chosen.get("step")
    if name is None and "epoch" in parsed:
        epochs = parsed["epoch"]
        if len(epochs.values) == count and np.all(np.diff(epochs.values) > 0) and np.all(epochs.values % 1 == 0):
            return epochs.values.astype(np.int64), chosen
    if name is None:
        return np.arange(count), chosen
    found = parsed.get(name, Numbers(np.empty(0, np.intp), np.empty(0), -1))
    whole = np.isfinite(found.values) & (found.values % 1 == 0)
    if not whole.all():
        wrong = int(np.flatnonzero(~whole)[0])
        place = f"{log.row} {log.lines[found.places[wrong]]}"
        raise ImportFormatError(f"{log.path}, {place}: step {found.values[wrong]} is not a whole number")
    losses = parsed[chosen["loss"]].places
    missing = np.setdiff1d(losses, found.places)
    if len(missing):
        raise ImportFormatError(
            f"{log.path}, {log.row} {log.lines[missing[0]]}: a loss, but no value in the step column {name!r}. Give "
            "another one with columns={'step': ...}."
        )
    steps = np.full(count, _NO_STEP)
    steps[found.places] = found.values
    back = losses[1:][steps[losses][1:] < steps[losses][:-1]]
    before = losses[:-1][steps[losses][1:] < steps[losses][:-1]]
    epochs = parsed.get("epoch", found)
    later_epoch = len(epochs.values) == count and bool(np.all(epochs.values[back] > epochs.values[before]))
    if len(back) and (later_epoch or (len(back) >= _EPOCHS and len(set(steps[back].tolist())) == 1)):
        log.meta["steps"] = f"rows counted: {name!r} starts again with every epoch"
        return np.arange(count), {signal: column for signal, column in chosen.items() if signal != "step"}
    return steps, chosen


def _records(
    row_steps: npt.NDArray[np.int64], losses: npt.NDArray[np.intp]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.intp]]:
    """Returns the steps of the records in the order of writing, and the record of each row (-1 for none).

    The steps go back only where those of the loss do: in between, rows are put in order and those of a step joined.
    """
    life = np.zeros(len(row_steps), np.int64)  # how often the run was resumed before the row was written
    back = losses[1:][row_steps[losses][1:] < row_steps[losses][:-1]]
    if len(back) <= _SHUFFLED * len(losses):
        life[back] = 1
    life = np.cumsum(life)
    order = np.lexsort((np.arange(len(row_steps)), row_steps, life))
    order = order[row_steps[order] != _NO_STEP]
    steps, lives = row_steps[order], life[order]
    new = np.concatenate([[True], (steps[1:] != steps[:-1]) | (lives[1:] != lives[:-1])])
    record = np.full(len(row_steps), -1, np.intp)
    record[order] = np.cumsum(new) - 1
    return steps[new], record


def _are_dates(stamps: npt.NDArray[np.float64]) -> bool:
    known = stamps[np.isfinite(stamps)]
    return bool(len(known)) and float(np.median(known)) > _EPOCH_SECONDS


def _final_names(parsed: Mapping[str, Numbers], chosen: Mapping[str, str]) -> dict[str, str]:
    """Returns column of the file -> name in the run; a column whose name a chosen signal took is marked."""
    names = {column: signal for signal, column in chosen.items()}
    taken = set(chosen)
    for column in parsed:
        if column not in names:
            names[column] = f"{column} (as logged)" if column in taken else column
    return names
