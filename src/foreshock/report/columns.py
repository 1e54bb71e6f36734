"""Which columns a run has, and how to show them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from foreshock.run import Run
from foreshock.signals import EDGES, SIGNALS, lookup

BOOKKEEPING = frozenset({
    "step_seconds", "monitor_seconds", "micro_batches", "nonfinite_first", "chi_residual", "chi_converged",
    "chi_matvecs", "chi_formal", "curvature_seconds", "curvature_cadence", "curvature_withheld", "probe_batch",
    "probe_gradient_ratio", "chi_growth", "chi_growth_lr", "chi_growth_momentum", "chi_growth_denominator",
    "chi_growth_preconditioner", "chi_growth_landscape", "chi_overlap", "chi_crossing", "stable_eps", "stable_floor",
    "hessian_top", "expected_rise", "expected_rise_in", "softmax_error", "softmax_wrong", "noise_scale", "noise_low",
    "noise_high", "noise_factor", "noise_gated",
})
"""Signals about the measurement, not about the training: never ranked, never the first sign of anything."""

WIDE_RANGE = 30.0  # a positive signal that spans more than this factor is drawn on a logarithmic axis
MOST_ZEROS = 0.4  # share of exact zeros up to which a logarithmic axis still tells the story


def tensor_signals(run: Run) -> tuple[str, ...]:
    """Returns the names of the signals the run holds per tensor, in the order of the table of signals.

    A signal that is not in the table ("mine/fc.weight") counts where all its units are tensors the run knows; imported
    names such as "train/accuracy" are run-wide.
    """
    order = {name: place for place, name in enumerate(SIGNALS)}
    bases = list(dict.fromkeys(column.partition("/")[0] for column in run.columns if "/" in column))
    known = [base for base in bases if base in SIGNALS and SIGNALS[base].per_tensor]
    units = {unit for base in known for unit in run.tensors(base)}
    units |= {str(name) for name in run.meta.get("tensors") or ()}
    own = [base for base in bases if base not in SIGNALS and set(run.tensors(base)) <= units]
    return tuple(sorted([*known, *own], key=lambda name: (order.get(name, len(order)), name)))


def wide_columns(run: Run) -> tuple[str, ...]:
    """Returns the run-wide columns, loss first, then in the order of the table of signals."""
    per_tensor = {f"{base}/{unit}" for base in tensor_signals(run) for unit in run.tensors(base)}
    order = {name: place for place, name in enumerate(SIGNALS)}
    found = [column for column in run.columns if column not in per_tensor]
    return tuple(sorted(found, key=lambda name: (order.get(name.partition("/")[0], len(order)), name)))


def describe(column: str) -> dict[str, str]:
    """Returns the unit and the meaning of a column, from the table of signals, and where its edge is if it has one.

    The unit is empty where the user named it.
    """
    signal = lookup(column)
    if signal is None:
        return {"unit": "", "meaning": "recorded by this run's own probe or script"}
    found = {"unit": "" if signal.unit == "1" else signal.unit, "meaning": signal.meaning}
    return found | {"edge": "1"} if column in EDGES else found


def wants_log(values: NDArray[np.float64]) -> bool:
    """Returns whether a curve reads better on a logarithmic axis: it can be drawn there, and is wide in range."""
    if not can_log(values):
        return False
    positive = values[np.isfinite(values) & (values > 0)]
    return float(positive.min()) < float(positive.max()) / WIDE_RANGE


def can_log(values: NDArray[np.float64]) -> bool:
    """Returns whether a logarithmic axis can show the values: none negative, few exact zeros (drawn at its foot)."""
    finite = values[np.isfinite(values)]
    return len(finite) > 1 and bool(finite.min() >= 0) and bool(np.mean(finite == 0) <= MOST_ZEROS)
