"""The gradient noise scale as a key figure: its last value with the band, or why there is none."""

from __future__ import annotations

import math

import numpy as np

from foreshock.report.wording import number
from foreshock.run import Run


def noise_figure(run: Run) -> tuple[str, str] | None:
    """Returns the value and the small print, None where it was not measured.

    The value is "none" where it is not known at the end: gated, or |G|^2 was not distinguishable from 0 by then.
    """
    if "noise_trace" not in run and "noise_gated" not in run:
        return None
    gate, gated = _last(run, "noise_gated")
    if gated > 0.0:
        return "none", f"gated at step {gate:,}: gradients are no measure of the loss"
    at, value = _last(run, "noise_scale")
    if at < max(0, _last(run, "noise_trace")[0]):
        return "none", "|G|\N{SUPERSCRIPT TWO} is not distinguishable from 0"
    low, high = (_last(run, name)[1] for name in ("noise_low", "noise_high"))
    return number(value), f"{number(low)} to {number(high)} examples, at step {at:,}"


def _last(run: Run, name: str) -> tuple[int, float]:
    """Returns step and value of the last measurement of a signal; -1 and NaN where there is none."""
    steps, values = run.measured(name) if name in run else (np.empty(0), np.empty(0))
    return (int(steps[-1]), float(values[-1])) if len(steps) else (-1, math.nan)
