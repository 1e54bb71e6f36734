"""What would have kept chi at or below kappa: eps, a floor under the denominator, learning rate, beta2; at what cost.

All of it is first order: curvature and second moments as they were. Raising eps or a floor tames the unstable
direction, and another may take over (for H >= 0 the remaining chi is at least what is promised: 1 to 28 % more was seen
on small dense problems), so measure again after the change. Costs were measured on one small network, 61 parameters
with Adam (run TL of the notes on Bai et al. 2025, arXiv 2506.04805), and say no more than which way things go.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np

from foreshock.detect.second_moment import betas, groups
from foreshock.detect.series import Series, near, series
from foreshock.diagnose.approach import Approach, approach
from foreshock.diagnose.second_moment import GRID, chi_at
from foreshock.errors import UsageError
from foreshock.run.event import Event
from foreshock.run.run import Run

Knob = Literal["eps", "floor", "lr", "beta2", "eps_crit"]
WHOLE = 0.99  # share of the unstable direction that must lie in tensors with a known denominator
KAPPA = 0.9  # what the recorded `stable_eps` and `stable_floor` were solved for

COSTS: Mapping[Knob, str] = {
    "eps": (
        "measured on one small network: from the start, eps 1e-2 left 15 of 31 spikes and a final loss 1.2 times as "
        "high, 0.1 left none and 5 times; raised to 0.1 at the alarm only, the spike was gone and the final loss 2.5 "
        "times as high"
    ),
    "floor": "not measured; the sharper form of eps, since coordinates above the floor keep their steps",
    "lr": (
        "measured on one small network: half the learning rate left 19 of 31 spikes, 3.5 instead of 10 times high; a "
        "quarter left none of twofold height"
    ),
    "beta2": (
        "measured on one small network: 0.99 gave twice as many spikes as 0.999, half as high; 0.95 none, with a final "
        "loss 1.1 times as high and half of all steps raising it; 0.9 none and 2.1 times; lowered at the alarm it "
        "comes too late"
    ),
    "eps_crit": "as for eps: a bound that holds at every step costs more than a value raised when it is needed",
}


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """One setting that would have kept chi at or below kappa.

    Attributes:
        knob: which one.
        value: of the setting; None where none was found, or the run does not tell.
        current: of the setting in this run; None where it is not known.
        text: what it would have done, and how far that can be trusted.
        cost: what it is known to cost.
        chi: largest chi at that value, to first order; NaN where there is none.
    """

    knob: Knob
    value: float | None
    current: float | None
    text: str
    cost: str
    chi: float


@dataclass(frozen=True, slots=True)
class Advice:
    """What would have held an event of the curvature family.

    Attributes:
        kappa: the chi aimed at.
        items: the best first; without a second moment there is the learning rate only.
        missing: what to record so that the next one can be judged in full.
        approach: what it is derived from.
    """

    kappa: float
    items: tuple[Counterfactual, ...]
    missing: tuple[str, ...]
    approach: Approach

    @property
    def best(self) -> Counterfactual | None:
        """The first with a value; None where nothing was found."""
        return next((item for item in self.items if item.value is not None and item.knob != "eps_crit"), None)

    def __getitem__(self, knob: str) -> Counterfactual:
        """Returns the item of one setting.

        Errors: KeyError where it does not apply.
        """
        for item in self.items:
            if item.knob == knob:
                return item
        raise KeyError(f"no advice about {knob!r}; there is: {', '.join(item.knob for item in self.items)}")


def advice(run: Run, event: Event, kappa: float = KAPPA, *, how: Approach | None = None) -> Advice | None:
    """Returns what would have kept chi <= kappa; None where chi was not read, or never passed 1.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent, transient or spike.
        kappa: the chi to stay below, between 0 and 1.
        how: the event's approach, where it is known already.

    Raises:
        UsageError: kappa is out of range.
    """
    if not 0 < kappa < 1:
        raise UsageError(f"advice(kappa=...): must be between 0 and 1, got {kappa!r}")
    run = near(run, event)
    how = approach(run, event) if how is None else how
    if how is None or how.marks.crossing is None:
        return None
    marks = how.marks
    # plain steps that never came back diverged, and up the walls chi may be anything: no part of the approach
    over = (marks.refill, marks.down, None if marks.adam else marks.turn)
    until = next((step for step in over if step is not None), marks.last)
    chi = series(run, "chi").within(how.marks.crossing, max(until, how.marks.crossing))
    worst = int(np.argmax(chi.values))
    at, most = int(chi.steps[worst]), float(chi.values[worst])
    if not marks.adam:
        return Advice(kappa, (_lr(run, at, most, kappa, adam=False),), tuple(how.stages.missing), how)
    items = [
        _denominator(run, "eps", chi, kappa), _denominator(run, "floor", chi, kappa),
        _lr(run, at, most, kappa, adam=True), _beta2(run, how, kappa), _bound(run, how),
    ]  # fmt: skip
    found = [item for item in items if item is not None]
    if how.verdict == "learning rate":
        found.sort(key=lambda item: item.knob != "lr")
    return Advice(kappa, tuple(found), _missing(run, found, how), how)


def _lr(run: Run, at: int, chi: float, kappa: float, *, adam: bool) -> Counterfactual:
    rate = _rate(run)
    now = rate.at(at) if len(rate) else math.nan
    text = f"keeps chi at {kappa:g} with curvature and denominators as at step {at:,}, where chi was {chi:.3g}; "
    text += "v would have gone on decaying, so this postpones" if adam else "the landscape may sharpen up to it again"
    if not math.isfinite(now):
        return Counterfactual("lr", None, None, f"{chi / kappa:.3g} times lower {text}", COSTS["lr"], kappa)
    return Counterfactual("lr", kappa * now / chi, now, text, COSTS["lr"], kappa)


def _denominator(run: Run, knob: Literal["eps", "floor"], chi: Series, kappa: float) -> Counterfactual | None:
    """Returns the eps, or the floor, that would have been enough at every reading from the crossing to the refill."""
    current = _eps(run)
    recorded = series(run, f"stable_{knob}").within(int(chi.steps[0]), int(chi.steps[-1]))
    text = f"holds chi at {kappa:g} from the crossing to the refill; to first order, and the least that will do"
    text += ": v would go on decaying beneath it, so for good it takes the bound" if knob == "eps" else ""
    if len(recorded) and math.isclose(kappa, KAPPA):
        value = float(recorded.values.max())
    else:
        value = _solved(run, knob, chi, kappa, current or 0.0)
        if not math.isfinite(value):
            return None
        text += "; estimated from each tensor's typical denominator"
    return Counterfactual(knob, value, current if knob == "eps" else None, text, COSTS[knob], kappa)


def _solved(run: Run, knob: str, chi: Series, kappa: float, eps: float) -> float:
    """Returns the largest eps or floor with sum_T share_T P_T / P'_T = kappa / chi at one of the readings.

    NaN where the denominators are not known.
    """
    names = [name for name in run.tensors("chi_share") if f"effective_step/{name}" in run]
    if not names or not len(chi):
        return math.nan
    shares = np.stack([series(run, f"chi_share/{name}").sampled(chi.steps) for name in names], axis=1)
    with np.errstate(all="ignore"):
        steps = np.stack([series(run, f"effective_step/{name}").sampled(chi.steps) for name in names], axis=1)
        p = _rate(run).sampled(chi.steps)[:, None] / steps
    sound = (shares > 0) & (p > 0) & (p < np.inf)
    shares, p = np.where(sound, shares, 0.0), np.where(sound, p, 1.0)
    if not np.all(shares.sum(axis=1) >= WHOLE):
        return math.nan
    low, high = np.full(len(chi), 1e-3 * p.min()), np.full(len(chi), 1e3 * p.max())
    for _ in range(60):
        middle = np.sqrt(low * high)
        changed = p - eps + middle[:, None] if knob == "eps" else np.maximum(p, middle[:, None])
        left = (shares * p / changed).sum(axis=1)
        low, high = np.where(left > kappa / chi.values, middle, low), np.where(left > kappa / chi.values, high, middle)
    return float(np.max(np.where(chi.values > kappa, high, 0.0)))


def _beta2(run: Run, how: Approach, kappa: float) -> Counterfactual | None:
    own, marks = betas(run)[1], how.marks
    chi = series(run, "chi").within(marks.begin, marks.turn if marks.turn is not None else marks.last)
    if own is None or not len(chi):
        return None
    found = chi_at(run, chi, own, [other for other in GRID if other != own])
    most = {other: float(values.max()) for other, values in found.items() if np.isfinite(values).all()}
    lower = {other: value for other, value in most.items() if other < own}
    if not lower:
        return None
    held = [other for other, value in lower.items() if value <= kappa]
    if held:
        value = max(held)
        text = f"holds chi at {lower[value]:.3g} on the recorded gradients"
        return Counterfactual("beta2", value, own, text, COSTS["beta2"], lower[value])
    best = min(lower, key=lambda other: lower[other])
    text = (
        f"on the recorded gradients no smaller one holds chi ({best:g}: {_short(lower[best])}), since v would have "
        "followed the shrinking gradient sooner; a small beta2 helps by letting v follow the growing gradient, which "
        "these gradients cannot show"
    )
    slower = [other for other, value in most.items() if other > own and value <= kappa]
    if slower:
        text += f"; {min(slower):g} would have held it until the loss turned, which only postpones"
    return Counterfactual("beta2", None, own, text, COSTS["beta2"], math.nan)


def _bound(run: Run, how: Approach) -> Counterfactual | None:
    """Returns eps_crit = lr lambda_max(H) (1 - beta1) / (2 (1 + beta1)): from there on no v can let chi pass 1."""
    marks, beta1 = how.marks, betas(run)[0]
    top = series(run, "hessian_top").within(marks.begin, marks.last)
    rate = _rate(run).at(marks.last)
    if beta1 is None or not len(top) or not rate > 0:
        return None
    largest = float(top.values.max())
    value = rate * largest * (1 - beta1) / (2 * (1 + beta1))
    text = f"whatever v does, chi cannot pass 1 from there on while lambda_max(H) stays at {largest:.3g}"
    return Counterfactual("eps_crit", value, _eps(run), text, COSTS["eps_crit"], 1.0)


def _missing(run: Run, found: list[Counterfactual], how: Approach) -> tuple[str, ...]:
    """Returns what the run would have to record for the advice that it lacks."""
    knobs = {item.knob for item in found}
    wanted = list(how.stages.missing)
    if "eps" not in knobs:
        wanted += ["stable_eps", "stable_floor"]
    if "beta2" not in knobs:
        wanted.append("beta2 in the metadata" if betas(run)[1] is None else "grad_norm of each tensor at every step")
    if "eps_crit" not in knobs:
        wanted.append("hessian_top")
    return tuple(dict.fromkeys(wanted))


def _rate(run: Run) -> Series:
    return series(run, "lr" if "lr" in run else "lr/group0")


def _eps(run: Run) -> float | None:
    found = [each.get("eps") for each in groups(run)]
    return next((float(value) for value in found if isinstance(value, (int, float))), None)


def _short(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else "far above 1"
