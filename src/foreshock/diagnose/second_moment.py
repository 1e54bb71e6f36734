"""What chi would have been at another beta2: the second moments of the recorded gradients, run again.

v_t = b v_{t-1} + (1 - b) g_t^2 with |g|^2 of each tensor as recorded, once with the run's own beta2 and once with
another; to first order chi' / chi = sum_T share_T sqrt(v_T / v'_T), both corrected for bias. It is the answer for these
gradients. In truth they would have been others: near the edge a small beta2 lets v follow them, which damps them.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from foreshock.detect.series import Series, series
from foreshock.run.run import Run

Floats = NDArray[np.float64]

GRID = (0.9, 0.95, 0.97, 0.98, 0.99, 0.995, 0.998, 0.999, 0.9995, 0.9998, 0.9999)
FORGOTTEN = 5.0  # times 1 / (1 - beta2) of gradients that must be known before the approach, or all since the start
LONGEST = 20_000  # steps that are run again at the most


def chi_at(run: Run, chi: Series, beta2: float, others: Sequence[float]) -> dict[float, Floats]:
    """Returns chi at each of these readings as it would have been with each other beta2.

    Those are left out for which the gradients were not recorded at every step since long enough before.

    Args:
        run: the run.
        chi: its readings, at least one.
        beta2: the run's own.
        others: the other ones.
    """
    found = _squares(run, chi)
    if found is None:
        return {}
    steps, squares, names = found
    known = int(chi.steps[0]) - int(steps[0])
    from_start = int(steps[0]) <= 1  # runs are numbered from 0, imported ones may be from 1
    tried = [other for other in others if from_start or known >= FORGOTTEN / (1 - max(beta2, other))]
    second = _second_moments(squares, np.array([beta2, *tried]), np.searchsorted(steps, chi.steps))
    shares = np.ones((len(chi), len(names)))
    for place, name in enumerate(names):
        if name:
            shares[:, place] = series(run, f"chi_share/{name}").sampled(chi.steps)
    shares = np.nan_to_num(shares)
    shares /= np.maximum(shares.sum(axis=1, keepdims=True), 1e-300)
    factors = np.sqrt(second[:, :1] / np.maximum(second[:, 1:], 1e-300))
    result = (factors * shares[:, None]).sum(axis=2) * chi.values[:, None]
    return {other: result[:, place] for place, other in enumerate(tried)}


def _squares(run: Run, chi: Series) -> tuple[NDArray[np.int64], Floats, list[str]] | None:
    """Returns the last steps without a gap up to the last reading, (n, tensors) squared norms, and the tensors.

    Of the whole gradient where those of the tensors were not recorded throughout.
    """
    names = [name for name in run.tensors("chi_share") if f"grad_norm/{name}" in run]
    last = int(chi.steps[-1])
    for tried in (names, [""]):
        columns = [series(run, f"grad_norm/{name}" if name else "grad_norm") for name in tried]
        columns = [each.within(last - LONGEST, last) for each in columns]
        if not columns or any(len(each) == 0 or int(each.steps[-1]) != last for each in columns):
            continue
        lengths = [len(each) - int(np.flatnonzero(np.diff(each.steps, prepend=-9) > 1)[-1]) for each in columns]
        n = min(lengths)
        if n > last - int(chi.steps[0]):
            return columns[0].steps[-n:], np.stack([each.values[-n:] for each in columns], axis=1) ** 2, tried
    return None


def _second_moments(squares: Floats, betas: Floats, at: NDArray[np.int64]) -> Floats:
    """Returns (len(at), betas, tensors): the bias-corrected second moments after these steps."""
    level, weight = np.zeros((len(betas), squares.shape[1])), np.zeros((len(betas), 1))
    keep, take = betas[:, None], 1 - betas[:, None]
    result, place = np.empty((len(at), *level.shape)), 0
    for step, square in enumerate(squares[: int(at[-1]) + 1]):
        level = keep * level + take * square
        weight = keep * weight + take
        if step == at[place]:
            result[place] = level / weight
            place += 1
    return result
