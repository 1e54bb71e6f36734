"""Runs made of arrays, with notes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from foreshock.run import Run
from foreshock.run.arrays import tables_from_arrays
from foreshock.run.load import RankData


def noted(columns: Mapping[str, np.ndarray], notes: Sequence[Mapping[str, Any]] = (), **meta: Any) -> Run:
    """Returns a run in memory with these signals and notes, each of which has its "kind" and "step"."""
    return Run({0: RankData(tables_from_arrays(columns), (), [{"time": 0.0, **note} for note in notes])}, meta)
