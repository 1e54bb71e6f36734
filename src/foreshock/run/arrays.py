"""Tables made of arrays that are already in memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.errors import UsageError
from foreshock.run.absent import ABSENT
from foreshock.run.layout import Segment, record_dtype
from foreshock.run.table import Table, assemble
from foreshock.signals import SIGNALS


def is_per_tensor(column: str) -> bool:
    """Returns whether a column is a per-tensor signal of the signal table, such as "grad_norm/fc.weight"."""
    signal, slash, unit = column.partition("/")
    return bool(slash and unit and signal in SIGNALS and SIGNALS[signal].per_tensor)


def tables_from_arrays(arrays: Mapping[str, npt.ArrayLike]) -> dict[str, Table]:
    """Returns the tables "step" and, where there are per-tensor columns, "tensors"; see `Run.from_arrays`."""
    columns = {name: _numbers(name, values) for name, values in arrays.items()}
    lengths = {name: len(values) for name, values in columns.items()}
    if len(set(lengths.values())) > 1:
        raise UsageError(f"all arrays must be equally long, got lengths {lengths}")
    count = next(iter(lengths.values()), 0)
    steps = _steps(columns.pop("step", np.arange(count)))
    times = columns.pop("time", np.zeros(count))
    return tables_from_columns(columns, steps, times)


def tables_from_columns(
    columns: Mapping[str, npt.NDArray[Any]], steps: npt.NDArray[np.int64], times: npt.NDArray[Any]
) -> dict[str, Table]:
    """Returns the tables "step" and, where there are per-tensor columns, "tensors"; going back in steps replaces."""
    per_tensor = [name for name in columns if is_per_tensor(name)]
    run_wide = [name for name in columns if not is_per_tensor(name)]
    tables = {"step": _table(run_wide, columns, steps, times)}
    if per_tensor:
        tables["tensors"] = _table(per_tensor, columns, steps, times)
    return tables


def _table(
    names: Sequence[str], columns: Mapping[str, npt.NDArray[Any]], steps: npt.NDArray[Any], times: npt.NDArray[Any]
) -> Table:
    rows = np.zeros(len(steps), record_dtype(len(names), np.float64))
    rows["step"], rows["time"] = steps, times
    for index, name in enumerate(names):
        rows["values"][:, index] = columns[name]
    return assemble([Segment(tuple(names), rows)])


def _numbers(name: str, values: npt.ArrayLike) -> npt.NDArray[Any]:
    if isinstance(values, np.ma.MaskedArray):
        return _numbers(name, np.where(np.ma.getmaskarray(values), ABSENT, values.astype(np.float64).data))
    array = np.asarray(values)
    if array.ndim != 1:
        raise UsageError(f"{name!r} must be one-dimensional, got shape {array.shape}")
    if array.dtype.kind not in "iubf":
        raise UsageError(f"{name!r} must hold real numbers, got {array.dtype}")
    return array


def _steps(values: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    real = values.astype(np.float64)
    whole = np.isfinite(real) & (np.floor(real) == real)
    if not whole.all():
        place = int(np.flatnonzero(~whole)[0])
        raise UsageError(f"'step' must hold whole numbers, got {values[place]} at index {place}")
    steps = values.astype(np.int64)
    back = np.flatnonzero(steps[1:] <= steps[:-1])
    if len(back):
        place = int(back[0])
        raise UsageError(
            f"'step' must be strictly increasing, but {steps[place + 1]} follows {steps[place]} at index {place + 1}"
        )
    return steps
