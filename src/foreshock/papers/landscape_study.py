"""Trainings by plain gradient descent as runs, for the landscape-spike reproduction."""

from __future__ import annotations

from typing import Protocol

import numpy as np
import numpy.typing as npt

from foreshock.run import Run, absent

__all__ = ["Descent", "recorded"]

Floats = npt.NDArray[np.float64]
SAME = 0.5  # |cos| of two readings' directions, below which they are of two eigenvectors and say nothing of growth


class Descent(Protocol):
    """A training by plain gradient descent: the loss of every step, and readings, NaN where they were not taken."""

    lr: float
    losses: Floats
    sharpness: Floats
    chi_gradient: Floats
    alignment: Floats
    overlap: Floats


def recorded(trace: Descent, name: str, **meta: object) -> Run:
    """Returns a training as a run, under the library's names of signals.

    W is constant under plain gradient descent, so that all growth of ln chi is the landscape's.
    """
    losses, lr = trace.losses, trace.lr
    readings = {
        "sharpness": trace.sharpness, "chi_gradient": trace.chi_gradient, "chi_alignment": trace.alignment,
        "chi_overlap": trace.overlap,
    }
    edge, sharpness = 2.0 / lr, readings["sharpness"]
    chi = sharpness / edge
    growth = np.full(len(losses), np.nan)
    at = np.flatnonzero(np.isfinite(chi))
    before, after = at[:-1], at[1:]
    lasting = (chi[before] > 0) & (chi[after] > 0) & (readings["chi_overlap"][after] >= SAME)
    growth[after[lasting]] = np.log(chi[after] / chi[before])[lasting]
    nothing = np.where(np.isfinite(growth), 0.0, np.nan)
    found = {
        **readings, "chi": chi, "threshold": np.where(np.isfinite(chi), edge, np.nan), "max_stable_lr": 2.0 / sharpness,
        "chi_gradient_sym": readings["chi_gradient"], "chi_growth": growth, "chi_growth_landscape": growth,
        "chi_growth_preconditioner": nothing, "chi_growth_lr": nothing, "chi_growth_momentum": nothing,
        "chi_growth_denominator": nothing,
    }
    table = {"loss": losses, "lr": np.full(len(losses), lr)}
    for signal, values in found.items():
        table[signal] = absent(len(losses))
        there = np.isfinite(values)
        table[signal][there] = values[there]
    return Run.from_arrays(table, name=name, paper="landscape-spikes", **meta)
