"""What the second moments of an adaptive optimizer did around an event, from their recorded growth `v_ratio`."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from foreshock.run.run import Run

Floats = NDArray[np.float64]

FREE = 0.9  # share of the free decay 1 - beta2 from which v decays freely: the gradient feeds it with less than a tenth
SHORT = 5  # records in a row that may be otherwise
CHOICES = 0.02  # inferred beta2: the lowest growth seen, if so large a share of the records are close to it


def groups(run: Run) -> list[Mapping[str, object]]:
    """Returns the settings of the optimizer's parameter groups, from the run's metadata."""
    found = run.meta.get("optimizers")
    if not isinstance(found, (list, tuple)) or not found or not isinstance(found[0], Mapping):
        return []
    sets = found[0].get("groups")
    return [each for each in sets if isinstance(each, Mapping)] if isinstance(sets, (list, tuple)) else []


def optimizer(run: Run) -> str:
    """Returns the name of the optimizer's class; empty where the metadata do not say."""
    found = run.meta.get("optimizers")
    first = found[0] if isinstance(found, (list, tuple)) and found else None
    return str(first.get("class") or "") if isinstance(first, Mapping) else ""


def betas(run: Run) -> tuple[float | None, float | None]:
    """Returns beta1 and beta2, None where the metadata do not say or groups differ, or nothing would be forgotten."""
    said = [found for each in groups(run) if isinstance(found := each.get("betas"), (list, tuple))]
    pairs = {tuple(beta for beta in each[:2] if isinstance(beta, (int, float))) for each in said}
    if len(pairs) == 1 and len(pair := pairs.pop()) == 2:
        return float(pair[0]), _forgets(pair[1])
    alphas = {each["alpha"] for each in groups(run) if isinstance(each.get("alpha"), float) and _of_squares(each)}
    return (0.0, _forgets(alphas.pop())) if len(alphas) == 1 else (None, None)


def _forgets(beta: object) -> float | None:
    return float(beta) if isinstance(beta, (int, float)) and beta < 1 else None


def has_second_moment(run: Run) -> bool:
    """Returns whether the optimizer divides by a second moment: by its signals, else by its settings."""
    return bool(ratios(run)) or any("betas" in each or _of_squares(each) for each in groups(run))


def _of_squares(group: Mapping[str, object]) -> bool:
    """Returns whether a group's `alpha` averages squared gradients; that of torch's ASGD is the power of its decay."""
    return "alpha" in group and "lambd" not in group


def ratios(run: Run) -> tuple[str, ...]:
    """Returns the columns of `v_ratio`, the run-wide one first."""
    whole = ("v_ratio",) if "v_ratio" in run else ()
    return (*whole, *(f"v_ratio/{name}" for name in run.tensors("v_ratio")))


def shares(run: Run, first: int, last: int) -> dict[str, float]:
    """Returns the mean share of each tensor in the unstable direction over first <= step <= last; of the last reading
    before where there is none."""
    result = {}
    for name in run.tensors("chi_share"):
        steps, values = run.measured(f"chi_share/{name}")
        inside = np.flatnonzero((steps >= first) & (steps <= last))
        picked = values[inside if len(inside) else np.flatnonzero(steps <= last)[-1:]]
        picked = picked[np.isfinite(picked)]
        if len(picked):
            result[name] = float(picked.mean())
    return result


def at_the_edge(run: Run, first: int | None, last: int | None) -> str | None:
    """Returns the tensor with the largest share of the unstable direction; None where it was not recorded."""
    if first is None:
        return None
    found = shares(run, first, max(first, last or first))
    return max(found, key=lambda name: found[name]) if found else None


def growth(run: Run, tensor: str | None) -> tuple[NDArray[np.int64], Floats]:
    """Returns steps and values of the growth of one tensor's second moment, of the whole one where that is unknown."""
    for name in (f"v_ratio/{tensor}", "v_ratio", *ratios(run)[:1]):
        if name in run:
            steps, values = run.measured(name)
            known = np.isfinite(values) & (values > 0)
            return steps[known], values[known]
    return np.empty(0, np.int64), np.empty(0)


def free_since(run: Run, tensor: str | None, to: int, *, floor: int) -> int | None:
    """Returns since when, up to step `to`, the second moment has been decaying freely at beta2; None where it does not.

    Free: (1 - r_v) / (1 - beta2) >= 0.9, so that the squared gradients are less than a tenth of v.
    """
    steps, values = growth(run, tensor)
    inside = (steps > floor) & (steps <= to)
    steps, values = steps[inside], values[inside]
    if len(steps) == 0:
        return None
    beta2 = betas(run)[1]
    if beta2 is None:
        beta2 = float(values.min())
        if not beta2 < 1 or np.mean(values < beta2 + CHOICES * (1 - beta2)) < CHOICES:
            return None
    free = (1 - values) / (1 - beta2) >= FREE
    since, other = None, 0
    for place in range(len(free) - 1, -1, -1):
        if free[place]:
            since, other = place, 0
        else:
            other += 1
            if other > SHORT:
                break
    return None if since is None or len(free) - since < 3 else int(steps[since])


def refill(run: Run, window: tuple[int, int], crossing: int | None) -> int | None:
    """Returns the first step at which the second moment grows in the unstable direction; None where it does not.

    The growth of each tensor's v counts by its share in the unstable direction, sum_T share_T ln r_T, because the norm
    of the whole v may be dominated by tensors that have nothing to do with it.
    """
    first, last = window
    found = shares(run, crossing if crossing is not None else first, first)
    found = {name: share for name, share in found.items() if f"v_ratio/{name}" in run and share > 0}
    columns = {f"v_ratio/{name}": share for name, share in found.items()} or dict.fromkeys(ratios(run)[:1], 1.0)
    total: Floats | None = None
    steps = np.empty(0, np.int64)
    for column, share in columns.items():
        steps, values = run.measured(column)
        inside = (steps > first) & (steps <= last)
        steps, values = steps[inside], values[inside]
        with np.errstate(all="ignore"):
            logs = np.where((values > 0) & (values < np.inf), np.log(values), 0.0) * share
        if total is not None and len(total) != len(logs):
            return None
        total = logs if total is None else total + logs
    if total is None or len(total) == 0:
        return None
    level = np.concatenate(([0.0], np.cumsum(total)))
    lowest = int(np.argmin(level[:-1])) if len(level) > 1 else 0
    return int(steps[lowest]) if level[lowest + 1] > level[lowest] else None
