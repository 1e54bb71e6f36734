"""Who made chi grow over an interval: the learning rate, the momentum, the denominators, or the landscape.

For the unit top eigenvector u of W^1/2 H W^1/2, d ln chi = sum_i u_i^2 d ln W_i + (W^1/2 u)' dH (W^1/2 u) / chi, and
ln W is made of ln lr, ln q and -ln P. Readings bring the parts (`chi_growth_...`); they are added up here, and where
the top eigenvector swapped between two readings that stretch is left out. Runs without them get an estimate: how the
tensors' `effective_step` grew, each counted by its share in u; exact where v decays freely, which is the case at issue.

Source: derived from the preconditioned Hessian of Bai et al. 2025, arXiv 2506.04805.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from foreshock.detect.second_moment import betas, groups, has_second_moment
from foreshock.detect.series import Series, series
from foreshock.run.run import Run

Floats = NDArray[np.float64]
_SIGNALS = {
    "learning rate": "chi_growth_lr", "momentum": "chi_growth_momentum", "denominator": "chi_growth_denominator",
    "landscape": "chi_growth_landscape",
}  # fmt: skip
PARTS = tuple(_SIGNALS)


@dataclass(frozen=True, slots=True)
class Growth:
    """ln chi at the end of an interval minus ln chi at its start, and its parts.

    Attributes:
        first: step of the reading it starts from.
        last: step of the reading it ends at.
        total: growth of ln chi that is split; without the stretches where the top direction swapped.
        parts: name -> growth, for "learning rate", "momentum", "denominator", "landscape"; they add up to `total`.
        tensors: the denominator's part by tensor, where it is known.
        restarts: stretches left out.
        estimated: made of `effective_step`, not of the exact parts of each reading.
        steps: (n,) steps of the readings, the first included.
        curves: name -> (n,) sum of each part from the first reading on.
    """

    first: int
    last: int
    total: float
    parts: Mapping[str, float]
    tensors: Mapping[str, float]
    restarts: int
    estimated: bool
    steps: NDArray[np.int64] = field(repr=False)
    curves: Mapping[str, Floats] = field(repr=False)

    def share(self, *names: str) -> float:
        """Returns the part of the growth that these parts make; above 1 where others worked against it.

        NaN where chi did not grow.
        """
        return sum(self.parts[name] for name in names) / self.total if self.total > 0 else math.nan


def growth(run: Run, first: int, last: int) -> Growth | None:
    """Returns how ln chi grew between two readings; None where the parts are not known, or there is one reading only.

    Args:
        run: the run.
        first: step of the first reading.
        last: step of the last one.
    """
    chi = series(run, "chi").within(first, last)
    if len(chi) < 2 or chi.values.min() <= 0:
        return None
    whole = np.diff(np.log(chi.values))
    parts, tensors, estimated = _measured(run, chi), {}, False
    if parts is not None:
        signal = _SIGNALS["denominator"]
        tensors = {name: _total(series(run, f"{signal}/{name}"), chi) for name in run.tensors(signal)}
        whole = sum((parts[name] for name in PARTS), np.zeros(len(whole)))
    else:
        found = _estimated(run, chi)
        if found is None:
            return None
        (parts, tensors), estimated = found, True
    known = np.isfinite(whole)
    curves = {name: np.concatenate(([0.0], np.cumsum(np.where(known, each, 0.0)))) for name, each in parts.items()}
    sums = {name: float(curve[-1]) for name, curve in curves.items()}
    return Growth(
        int(chi.steps[0]), int(chi.steps[-1]), float(whole[known].sum()), sums, tensors, int((~known).sum()), estimated,
        chi.steps, curves,
    )  # fmt: skip


def _measured(run: Run, chi: Series) -> dict[str, Floats] | None:
    """Returns the parts of each stretch between readings as recorded, NaN where the sum was restarted."""
    if "chi_growth" not in run or "chi_growth_landscape" not in run:
        return None
    found = {}
    for name, signal in _SIGNALS.items():
        recorded = series(run, signal)
        found[name] = _exactly(recorded, chi.steps[1:])
    if not np.isfinite(found["landscape"]).any():
        return None
    for name in PARTS[:-1]:  # a part that was never recorded did not change
        if _SIGNALS[name] not in run:
            found[name] = np.where(np.isfinite(found["landscape"]), 0.0, np.nan)
    return found


def _estimated(run: Run, chi: Series) -> tuple[dict[str, Floats], dict[str, float]] | None:
    """Returns the parts of each stretch, with the denominators' from the tensors' effective steps."""
    total = np.diff(np.log(chi.values))
    rate = series(run, "lr")
    if not len(rate):
        rate = series(run, "lr/group0")
    lr = np.diff(_logs(rate.sampled(chi.steps)))
    lr = np.where(np.isfinite(lr), lr, 0.0)
    denominators, tensors = np.zeros(len(total)), {}
    names = [name for name in run.tensors("effective_step") if f"chi_share/{name}" in run]
    if not names and (has_second_moment(run) or not groups(run)):
        return None  # nothing is known of the denominators
    for name in names:
        share, step = series(run, f"chi_share/{name}"), series(run, f"effective_step/{name}")
        weights, levels = share.sampled(chi.steps), _logs(step.sampled(chi.steps))
        moved = (weights[1:] + weights[:-1]) / 2 * (np.diff(levels) - lr)
        moved = np.where(np.isfinite(moved), moved, 0.0)
        denominators = denominators + moved
        tensors[name] = float(moved.sum())
    beta1 = betas(run)[0] or 0.0
    momentum = -np.diff(_logs(np.asarray(1 - np.power(beta1, chi.steps + 1.0), np.float64)))
    rest = total - lr - momentum - denominators
    return dict(zip(PARTS, (lr, momentum, denominators, rest), strict=True)), tensors


def _total(recorded: Series, chi: Series) -> float:
    inside = recorded.within(int(chi.steps[0]) + 1, int(chi.steps[-1]))
    return float(inside.values.sum())


def _exactly(values: Series, steps: NDArray[np.int64]) -> Floats:
    """Returns the values measured at these steps, NaN at those without."""
    there = np.isin(steps, values.steps)
    result: Floats = np.where(there, values.sampled(steps), np.nan)
    return result


def _logs(values: Floats) -> Floats:
    with np.errstate(all="ignore"):
        result: Floats = np.where(values > 0, np.log(values), np.nan)
    return result
