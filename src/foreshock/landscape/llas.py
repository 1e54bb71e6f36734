"""Whether lower loss goes with sharper ground: the LLAS index, along a training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.errors import UsageError

# A rise of the loss above its lowest so far that makes a window no ordinary descent.
ASCENT = 1.1
# Share of pairs of points, concordant less discordant, from which a relation is called one; see `relation`.
_CLEARLY = 0.5


@dataclass(frozen=True, slots=True)
class LlasIndex:
    """How sharpness moves with the loss.

    Attributes:
        correlation: of ln L with the sharpness, from -1 to 1; clearly negative is "lower loss as sharper".
        slope: d sharpness / d ln L, by least squares: how much sharper it gets per e-fold of the loss, times -1.
        relation: "lower is sharper", "lower is flatter" or "neither", see `relation`.
        count: points used.
        notes: what a reader has to know.
    """

    correlation: float
    slope: float
    relation: str
    count: int
    notes: tuple[str, ...] = ()


def llas_index(
    losses: Sequence[float] | np.ndarray, sharpness: Sequence[float] | np.ndarray, *,
    steps: Sequence[int] | np.ndarray | None = None, first: int | None = None, last: int | None = None,
) -> LlasIndex:
    """Returns how sharpness goes with the loss over a window of ordinary descent.

    During an ascent the loss is motion across the valley, not along its floor, and the index weakens: a window that
    contains one gets a note. End it at the minimum before the spike.

    Args:
        losses: of the training, positive, one for each reading or each step.
        sharpness: lambda_max(H), or chi, at the same steps; NaN where it was not measured.
        steps: of the entries; by default 0, 1, 2, ...
        first, last: the window, in steps, both included.

    Raises:
        UsageError: lists of different lengths, fewer than 3 points in the window, or a loss that is not above 0.

    Source: the index is ours; the notion is that of Li et al. 2023, arXiv 2305.12133.

    >>> llas_index([4.0, 2.0, 1.0], [10.0, 11.0, 12.0]).correlation
    -1.0
    """
    loss, sharp = np.asarray(losses, dtype=float).ravel(), np.asarray(sharpness, dtype=float).ravel()
    if loss.shape != sharp.shape:
        raise UsageError(f"llas_index(losses, sharpness): {loss.size} losses for {sharp.size} readings")
    at = np.arange(loss.size) if steps is None else np.asarray(steps).ravel()
    if at.shape != loss.shape:
        raise UsageError(f"llas_index(steps): {at.size} steps for {loss.size} losses")
    inside = (at >= (-math.inf if first is None else first)) & (at <= (math.inf if last is None else last))
    notes = _ascents(at[inside], loss[inside])
    used = inside & np.isfinite(loss) & np.isfinite(sharp)
    if used.sum() < 3:
        raise UsageError(f"llas_index: at least 3 readings are needed in the window, got {int(used.sum())}")
    if not (loss[used] > 0).all():
        raise UsageError("llas_index(losses): they must be above 0, as their logarithm is taken; subtract their bound")
    return index_of(loss[used], sharp[used], notes)


def index_of(loss: np.ndarray, sharp: np.ndarray, notes: tuple[str, ...] = ()) -> LlasIndex:
    """Returns the index of finite pairs, losses above 0."""
    x, y = np.log(loss), sharp
    x, y = x - x.mean(), y - y.mean()
    spread = float(np.sqrt((x * x).sum() * (y * y).sum()))
    correlation = float((x * y).sum()) / spread if spread > 0 else math.nan
    slope = float((x * y).sum() / (x * x).sum()) if (x * x).sum() > 0 else math.nan
    return LlasIndex(float(np.clip(correlation, -1.0, 1.0)), slope, relation(loss, sharp), len(loss), notes)


def relation(loss: np.ndarray, sharp: np.ndarray) -> str:
    """Returns "lower is sharper" where Kendall's tau is below -1/2, "lower is flatter" where it is above 1/2.

    Tau is the share of pairs of points in which the one with more loss is the sharper one, less the share in which it
    is the flatter one: no outlier and no choice of scale makes it.

    >>> relation(np.array([1.0, 2.0, 3.0]), np.array([9.0, 5.0, 4.0]))
    'lower is sharper'
    """
    signs = np.sign(loss[:, None] - loss[None, :]) * np.sign(sharp[:, None] - sharp[None, :])
    pairs = len(loss) * (len(loss) - 1)
    tau = float(signs.sum()) / pairs if pairs else 0.0
    if abs(tau) < _CLEARLY:
        return "neither"
    return "lower is sharper" if tau < 0 else "lower is flatter"


def _ascents(steps: np.ndarray, losses: np.ndarray) -> tuple[str, ...]:
    finite = np.isfinite(losses)
    if finite.sum() < 2:
        return ()
    at, loss = steps[finite], losses[finite]
    lowest = np.minimum.accumulate(loss)
    with np.errstate(divide="ignore", invalid="ignore"):
        rises = np.where(lowest > 0, loss / lowest, 1.0)
    worst = int(rises.argmax())
    if rises[worst] < ASCENT:
        return ()
    begin = int(loss[: worst + 1].argmin())
    return (
        f"the window contains an ascent (x{rises[worst]:.2g} from step {at[begin]} to {at[worst]}): there the loss is "
        "motion across the valley, and the index is weaker; end the window at the minimum",
    )
