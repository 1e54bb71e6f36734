"""The reference run by its stages: what is absorbed, what inflates, and how long before the first spike it was said."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from foreshock.papers.absorption_drift import Drift, drift
from foreshock.papers.absorption_spikes import Relapse, relapses
from foreshock.papers.absorption_training import Trace, reference
from foreshock.run import Run

__all__ = ["BEGIN", "DRIFT_STEPS", "LEVELS", "LOW", "PRINTED", "at", "calm_run", "drifts", "raised", "stages"]

BEGIN = 400  # step from which growth is counted: the loss is near 1e-5, and nothing is absorbed
DRIFT_STEPS = (800, 900, 1000, 1100)
PRINTED = (500, 800, 1000, 1200)  # steps of the table in the paper's reference run
LEVELS = ("absorbing", "inflating", "imminent")
SIGNAL = "softmax_sensitivity"  # of the level "imminent", which other causes have as well
HEAD = "update_rms/6.weight"
LOW = 1e-5  # a loss that ends the way to the first spike too: of some starts it goes up to 3e-5 or 2e-3 only
NEAR = 30  # steps before a spike within which updates are largest

Floats = npt.NDArray[np.float64]


class Level(NamedTuple):
    """A level and the step at which it was raised; NaN for never."""

    name: str
    step: float


def raised(run: Run) -> list[Level]:
    """Returns when each of the three levels was first raised in a run that a monitor watched."""
    found = []
    for name in LEVELS:
        steps = [
            event.raised for event in run.events
            if event.kind == name and (name != "imminent" or event.signal == SIGNAL)
        ]  # fmt: skip
        found.append(Level(name, float(min(steps)) if steps else math.nan))
    return found


def at(run: Run, name: str, step: int) -> float:
    """Returns the last reading of a signal up to a step; NaN without one."""
    steps, values = run.measured(name)
    before = np.flatnonzero(steps <= step)
    return float(values[before[-1]]) if len(before) else math.nan


def stages(trace: Trace) -> dict[str, float]:
    """Returns what was seen of the way to the first spike, be it a low one; without any, only that there is none."""
    run, spikes = trace.run, relapses(trace.losses, LOW)
    numbers = {"spikes seen": float(len(spikes))}
    if not spikes:
        return numbers
    first = spikes[0].first
    levels = raised(run)
    numbers |= {f"lead of {level.name}": first - level.step for level in levels}
    numbers["levels in order"] = float(levels[0].step <= levels[1].step <= levels[2].step <= first)
    steps, cosines = run.measured("softmax_cosine")
    numbers["cosine before the spike"] = float(cosines[(steps >= BEGIN) & (steps < first)].min())
    for name, signal in (("W_G", "softmax_head_mean"), ("mu_G", "softmax_feature_mean")):
        numbers[f"{name} grows by"] = at(run, signal, first - 1) / at(run, signal, BEGIN)
    begin = int(levels[1].step) if math.isfinite(levels[1].step) else BEGIN
    numbers["W* grows by"] = at(run, "softmax_head_centred", first - 1) / at(run, "softmax_head_centred", begin)
    numbers |= _growth(trace, begin, first)
    steps, errors = run.measured("softmax_error")
    numbers["verdict"] = float(np.median(errors[(steps >= begin) & (steps < first)]))
    if HEAD in run and len(spikes) > 1:
        jumps = _jumps(run, spikes)
        numbers |= {"jump at the first spike": jumps[0], "jump at later spikes": float(np.median(jumps[1:]))}
    return numbers


def _growth(trace: Trace, begin: int, first: int) -> dict[str, float]:
    """Returns how fast |mu_G| and |W_G| grow from a step to the first spike, and how they compare then."""
    run, width = trace.run, trace.arm.hidden[-1]
    result = {}
    for name, signal, make in (
        ("mu_G", "softmax_feature_mean", np.log), ("W_G", "softmax_head_mean", np.asarray),
    ):  # fmt: skip
        steps, values = run.measured(signal)
        inside = (steps >= begin) & (steps < first)
        result[name] = float(np.polyfit(steps[inside], make(values[inside]), 1)[0]) if inside.sum() > 2 else math.nan
    classes = reference(trace.seed, hidden=trace.arm.hidden).head.out_features
    largest = at(run, "softmax_feature_mean", first - 1)
    return {
        "rate of mu_G": result["mu_G"],
        "rate of W_G": result["W_G"] / (1e-3 * math.sqrt(width)),
        "W_G over its limit": at(run, "softmax_head_mean", first - 1) / (largest / math.sqrt(classes)),
    }


def _jumps(run: Run, spikes: list[Relapse]) -> list[float]:
    """Returns, spike by spike, the head's largest update of the 30 steps before over its smallest since the last."""
    sizes, since, found = run[HEAD], BEGIN, []
    for spike in spikes:
        calm, near = sizes[since : spike.first - NEAR], sizes[max(spike.first - NEAR, 0) : spike.first]
        found.append(float(np.nanmax(near) / np.nanmin(calm)) if len(calm) else math.nan)
        since = spike.last + 1
    return found


def calm_run(trace: Trace, until: int) -> dict[str, float]:
    """Returns what the same signals say of a run in which nothing is absorbed, from step 400 until a step."""
    run, prefix = trace.run, trace.arm.name
    steps, cosines = run.measured("softmax_cosine")
    inside = (steps >= BEGIN) & (steps < until)
    return {
        f"{prefix}: levels": float(sum(math.isfinite(level.step) for level in raised(run))),
        f"{prefix}: absorbed": float(np.nanmax(run.measured("softmax_absorbed")[1])),
        f"{prefix}: residual": float(np.nanmax(run.measured("softmax_residual")[1])),
        f"{prefix}: error": float(np.nanmax(run.measured("softmax_error")[1])),
        f"{prefix}: lowest cosine": float(cosines[inside].min()),
        f"{prefix}: W_G grows by": at(run, "softmax_head_mean", until - 1) / at(run, "softmax_head_mean", BEGIN),
    }


def drifts(trace: Trace) -> Mapping[int, Drift]:
    """Returns step -> what moved the head's class mean there, for the steps whose parameters were kept."""
    problem = reference(trace.seed, hidden=trace.arm.hidden, dtype=trace.arm.dtype)
    return {step: drift(problem, state) for step, state in sorted(trace.states.items())}
