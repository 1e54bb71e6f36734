"""A run small enough to damage byte by byte, and what is to be read of it."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np

from foreshock.errors import ForeshockWarning
from foreshock.run import Event, Run, RunWriter, absent

COLUMNS = ("loss", "grad_norm")
TENSORS = ("grad_norm/fc.weight", "grad_norm/fc.bias")


def values(step: int) -> np.ndarray:
    row = np.array([[1.0 / (step + 1), step]], np.float32)
    if step == 2:
        row[0, 0] = np.nan
    if step == 3:
        row[:, 1:] = absent((1, 1), np.float32)
    return row


def write(path: Path, steps: int = 5) -> str:
    """Writes `steps` records in two file pairs, two per-tensor records, two events and a note; returns the id."""
    with RunWriter(path, {"name": "small"}) as writer:
        for step in range(steps):
            writer.append("step", COLUMNS, [step], [float(step)], values(step))
        writer.append("step", ("loss",), [steps], [0.0], np.array([[0.125]]))
        writer.append("tensors", TENSORS, [0, 3], [0.0, 3.0], np.arange(4, dtype=np.float32).reshape(2, 2))
        for step in (2, 4):
            writer.event(Event("spike", step, step, step, None, 1.5, float("inf"), "loss", {"width": "narrow"}))
        writer.note("probe_disabled", step=3, probe="chi")
        return writer.id


def load_quietly(path: Path) -> Run:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ForeshockWarning)
        return Run.load(path)


def bits(array: np.ndarray) -> list[int]:
    """Returns the bit patterns, in which NaN equals itself and -0.0 differs from 0.0."""
    kind = np.uint32 if array.dtype == np.float32 else np.uint64
    return np.ascontiguousarray(array).view(kind).reshape(-1).tolist()
