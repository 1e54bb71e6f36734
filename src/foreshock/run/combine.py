"""One signal out of several tables: per-tensor values that are kept thinned out, and densely around an event."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from foreshock.run.absent import absent, is_absent, to_float64
from foreshock.run.table import Floats, Steps, Table


def measured(tables: Sequence[Table], name: str) -> tuple[Steps, Floats]:
    """Returns the steps at which a signal was measured and its values; where two tables have it, the first counts."""
    steps, values = [], []
    for table in tables:
        column = table.column(name)
        there = ~is_absent(column)
        steps.append(table.steps[there])
        values.append(column[there])
    if len(tables) == 1:
        return steps[0], values[0]
    joined, first = np.unique(np.concatenate(steps), return_index=True)
    return joined, np.concatenate(values)[first]


def aligned(steps: Steps, known: Steps, values: Floats) -> Floats:
    """Returns the values at `steps`, absent at those that are not `known`; both strictly increasing."""
    result = absent(len(steps))
    if len(known):
        place = np.minimum(np.searchsorted(known, steps), len(known) - 1)
        found = known[place] == steps
        result[found] = values[place[found]]
    return result


def matrix(tables: Sequence[Table], names: Sequence[str]) -> tuple[Steps, npt.NDArray[Any]]:
    """Returns (steps (T,), values (T, len(names))) over all steps of the tables; a view where there is only one."""
    if len(tables) == 1 and set(names) <= set(tables[0].columns):
        return tables[0].steps, tables[0].matrix(names)
    steps = np.unique(np.concatenate([table.steps for table in tables]))
    blocks = []
    for table in reversed(tables):  # so that the first counts
        places = [place for place, name in enumerate(names) if name in table.columns]
        blocks.append((table.steps, places, table.matrix([names[place] for place in places])))
    values = absent((len(steps), len(names)), np.result_type(*(block for _, _, block in blocks)))
    for known, places, block in blocks:
        where = np.ix_(np.searchsorted(steps, known), np.array(places, np.intp))
        there = ~is_absent(block)
        part = values[where]
        part[there] = block[there] if block.dtype == values.dtype else to_float64(block[there])
        values[where] = part
    return steps, values
