"""The anatomy of landscape spikes: crossing, minimum, trigger, peak, and the way back, found in curves."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Spike", "anatomy", "crossings"]

Floats = npt.NDArray[np.float64]
RISE = 2.0  # of the loss over the lowest before it, from which on an excursion is a spike
GAP = 10  # steps below the edge that do not end a stretch above it: lambda_max flickers with the step's parity
NEAR = 8  # steps before the minimum from which on chi_grad > 1 is looked for: it flickers there as well


@dataclass(frozen=True, slots=True)
class Spike:
    """One spike; steps are updates done.

    Attributes:
        up: lambda_max comes above 2/eta, to stay above it until the minimum.
        confirmed: chi_grad comes above 1, None where it does not (or was not read then).
        minimum: the lowest loss before the rise.
        trigger: the loss is twice that.
        peak: the highest loss.
        down: lambda_max falls below 2/eta after the minimum; None where it does not before `back`.
        back: the loss is at the minimum's again; None where the run ends before.
        low, high: loss at minimum and peak.
        sharp, flat: lambda_max at minimum and peak.
    """

    up: int
    confirmed: int | None
    minimum: int
    trigger: int
    peak: int
    down: int | None
    back: int | None
    low: float
    high: float
    sharp: float
    flat: float

    @property
    def height(self) -> float:
        """Returns peak / minimum."""
        return self.high / self.low


def anatomy(losses: Floats, sharpness: Floats, chi_gradient: Floats, edge: float, *, rise: float = RISE) -> list[Spike]:
    """Returns the spikes of a run that begin above the edge, in order.

    Args:
        losses: of every step.
        sharpness: lambda_max(H); NaN where it was not read, and filled in between readings there.
        chi_gradient: (eta/2) g'Hg / |g|^2, likewise.
        edge: 2/eta.
        rise: of the loss over the lowest before it, that makes a spike.
    """
    sharp, along = filled(sharpness), filled(chi_gradient)
    found: list[Spike] = []
    lowest = step = 0
    while step < len(losses):
        if losses[step] <= losses[lowest]:
            lowest = step
        elif losses[step] > rise * losses[lowest] or not np.isfinite(losses[step]):
            back = next((t for t in range(step, len(losses)) if losses[t] <= losses[lowest]), None)
            found.append(_spike(losses, sharp, along, edge, (lowest, step, back)))
            if back is None:
                break
            lowest = step = back
            continue
        step += 1
    return [spike for spike in found if spike.sharp > edge]


def crossings(sharpness: Floats, edge: float, *, gap: int = GAP) -> list[tuple[int, int]]:
    """Returns the stretches above the edge, as (first, last) steps; dips of up to `gap` steps do not end one.

    >>> crossings(np.array([1.0, 3.0, 1.0, 3.0, 1.0, 1.0, 3.0]), 2.0, gap=1)
    [(1, 3), (6, 6)]
    """
    above = np.flatnonzero(sharpness > edge)
    if not len(above):
        return []
    breaks = np.flatnonzero(np.diff(above) > gap + 1)
    firsts, lasts = above[np.concatenate([[0], breaks + 1])], above[np.concatenate([breaks, [len(above) - 1]])]
    return [(int(first), int(last)) for first, last in zip(firsts, lasts, strict=True)]


def filled(values: Floats) -> Floats:
    """Returns a curve whose NaN are replaced by straight lines between what is there; all NaN stays so."""
    known = np.flatnonzero(np.isfinite(values))
    if not len(known) or len(known) == len(values):
        return values
    return np.interp(np.arange(len(values)), known, values[known])


def _spike(losses: Floats, sharp: Floats, along: Floats, edge: float, steps: tuple[int, int, int | None]) -> Spike:
    minimum, trigger, back = steps
    end = len(losses) if back is None else back
    peak = trigger + int(np.nanargmax(losses[trigger:end])) if end > trigger else trigger
    stretch = [first for first, last in crossings(sharp[: minimum + 1], edge) if last >= minimum - GAP]
    confirmed = next((t for t in range(max(minimum - NEAR, 0), end) if along[t] > 1.0), None)
    return Spike(
        up=stretch[-1] if stretch else minimum, confirmed=confirmed, minimum=minimum, trigger=trigger, peak=peak,
        down=next((t for t in range(minimum + 1, end) if sharp[t] <= edge), None), back=back,
        low=float(losses[minimum]), high=float(losses[peak]), sharp=float(sharp[minimum]), flat=float(sharp[peak]),
    )
