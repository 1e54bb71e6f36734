"""How writes to the weights that were no updates are found in the records of one tensor.

Told in three ways, the surest first. `outside_norm` is what the monitor measured where somebody wrote to a parameter.
Else | |theta_t| - |theta_{t-1}| | > |update_t| is impossible for an update alone, by the triangle inequality; older and
imported runs tell as much. And an update is bounded by what its optimizer can make of the gradient: one beyond that, of
a tensor or two while the others are usual, holds what somebody wrote without torch noticing.

From three norms comes the cosine of the weights before and after, (|a|^2 + |b|^2 - |b - a|^2) / (2 |a| |b|): weights
that were initialised again have forgotten where they were (0), scaled ones have not (1), disturbed ones lie between.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.bursts import largest_update
from foreshock.detect.second_moment import groups, optimizer
from foreshock.detect.series import Series, series
from foreshock.run.run import Run

SLACK, ROUNDING = 1.05, 2e-5  # of an update's norm, and of the parameters' norm in float32, that are no proof
BEYOND = 1.5  # times its bound from which an update was none
LATELY, HABIT, ALIKE = 128, 3, 5.0  # so many writes in the steps before, and times their median: some loops always do
CLOSE, AFAR = 1.05, 0.45  # times their bounds that others come to under a tampered state; a burst takes Adam to 0.43
ALONE = 0.5  # times such an update, that those around it may be
BOUNDED = frozenset({"Adam", "Adamax", "RMSprop", "Adagrad", "Lion", "SignSGD", "S3"})
"""Optimizers of which no update exceeds the bound of the long run, not even one of the first steps."""
LEAST = 1e-3  # of a tensor's norm: less makes no event


@dataclass(frozen=True, slots=True)
class Written:
    """One tensor that was written to.

    Attributes:
        name: of the tensor, or module; empty for all together.
        change: norm of what was written, or the least it can have been.
        before, after: norms of the tensor.
        update: norm of the update at that step, or its bound; NaN where neither is known.
        elements: that changed; NaN where not counted.
        size: elements of the tensor; NaN where not known.
        how: "measured", "norms" or "bound".
    """

    name: str
    change: float
    before: float
    after: float
    update: float
    elements: float
    size: float
    how: str

    @property
    def cosine(self) -> float:
        """Cosine of the weights before and after; NaN where the change is not known exactly."""
        if self.how == "norms" or not self.before * self.after > 0:
            return math.nan
        with np.errstate(all="ignore"):
            a, b = np.float64(self.before), np.float64(self.after)
            return float((a / b + b / a - np.float64(self.change) ** 2 / (a * b)) / 2)


def written(run: Run, name: str, steps: set[int]) -> dict[int, Written]:
    """Returns what was written to one tensor, by step.

    Args:
        run: the run, or the part of it around the event.
        name: of the tensor, or module; empty for all together.
        steps: those that are asked about.
    """
    tail = f"/{name}" if name else ""
    norms, updates = series(run, f"param_norm{tail}"), series(run, f"update_norm{tail}")
    measured, counted = series(run, f"outside_norm{tail}"), series(run, f"outside_count{tail}")
    whole, at = _size(run, tail, updates), set(norms.steps.tolist())
    told: dict[int, float] = {}
    if f"outside_norm{tail}" in run:  # with the infinite ones
        told = dict(zip(*(each.tolist() for each in run.measured(f"outside_norm{tail}")), strict=True))
    limits = _bounds(run, tail, updates) if len(updates) else {}
    moves, elements, found = _exactly(updates), _exactly(counted), {}
    for step in sorted(steps & (at | told.keys())):
        before, after = norms.at(step - 1), norms.at(step)
        if math.isnan(before) or (step - 1 not in at and step not in told):
            continue
        update = moves.get(step, math.nan)
        if step not in at:
            after = math.inf  # it was recorded, and is no number any more
        if step in told:
            size = told[step] if math.isfinite(told[step]) else math.inf
            if size > LEAST * before and not _usual(measured, step, size):
                some = elements.get(step, math.nan)
                found[step] = Written(name, size, before, after, update, some, whole, "measured")
            continue
        least = abs(after - before) - (update if math.isfinite(update) else math.inf)
        if abs(after - before) > SLACK * update + ROUNDING * max(before, after) and least > LEAST * before:
            found[step] = Written(name, least, before, after, update, math.nan, whole, "norms")
        elif step in limits and _alone(updates, step, update) and update > max(BEYOND * limits[step], LEAST * before):
            found[step] = Written(name, update, before, after, limits[step], math.nan, whole, "bound")
    return found


def _alone(updates: Series, step: int, size: float) -> bool:
    """Returns whether the updates around one are small beside it: a state that was tampered with acts for longer."""
    place = int(np.searchsorted(updates.steps, step))
    around = [*updates.values[max(0, place - 1) : place], *updates.values[place + 1 : place + 2]]
    return bool(around) and max(around) < ALONE * size


def burst(run: Run, held: Sequence[tuple[int, Written]], names: Sequence[str], step: int) -> bool:
    """Returns whether other tensors came near their bounds as well: then it was the optimizer's doing."""
    own, close, others = {each.name for at, each in held if at == step}, 0, 0
    near = AFAR if optimizer(run).startswith("Adam") else CLOSE
    for name in names:
        updates = series(run, f"update_norm/{name}")
        limit = _bounds(run, f"/{name}", updates).get(step)
        if name not in own and limit is not None:
            others += 1
            close += updates.at(step) > near * limit
    return not others or close > others / 4


def _exactly(values: Series) -> dict[int, float]:
    return dict(zip(values.steps.tolist(), values.values.tolist(), strict=True))


def _size(run: Run, tail: str, updates: Series) -> float:
    """Returns a tensor's elements: the square of its update's norm over the root mean square."""
    roots = series(run, f"update_rms{tail}")
    if not len(roots) or not len(updates) or not roots.values[0] > 0 or roots.steps[0] != updates.steps[0]:
        return math.nan
    return float(round((updates.values[0] / roots.values[0]) ** 2))


def _usual(measured: Series, step: int, size: float) -> bool:
    """Returns whether the loop writes as much all the time."""
    before = measured.within(step - LATELY, step - 1).values
    return len(before) >= HABIT and size <= ALIKE * float(np.median(before))


def _bounds(run: Run, tail: str, updates: Series) -> dict[int, float]:
    """Returns the most that each recorded update of a tensor can have been, by step; empty where nothing bounds it.

    Of a coordinate what gradients can make of it at most (see `foreshock.bursts`), each with its decay. SGD: lr |g| and
    what momentum keeps.
    """
    sets, kind = groups(run), optimizer(run)
    rate = series(run, "lr" if "lr" in run else "lr/group0")
    rates = [series(run, f"lr/{group}") for group in run.tensors("lr")] or [rate]
    if not sets or not len(rate):
        return {}

    def top(name: str) -> float:
        return max((value for each in sets if isinstance(value := each.get(name), (int, float))), default=0.0)

    steps = updates.steps
    with np.errstate(all="ignore"):
        lr = np.fmax.reduce([each.sampled(steps) for each in rates])
        decay = lr * top("weight_decay") * series(run, f"param_norm{tail}").sampled(steps - 1)
        if kind == "SGD":
            gradient = series(run, f"grad_norm{tail}")
            there = np.isin(steps, gradient.steps) & (np.diff(steps, prepend=steps[:1] - 1) == 1)
            mu = top("momentum")
            last = np.concatenate(([np.nan], updates.values[:-1])) * lr / np.concatenate(([np.nan], lr[:-1]))
            limit = (1 + mu) * (lr * gradient.sampled(steps) + decay) + mu * last
            limit[~there] = np.nan
        else:
            most = _most(kind, sets)
            root = np.sqrt(_size(run, tail, updates))
            limit = lr * most * root + decay
    good = np.isfinite(limit) & (limit > 0)
    return dict(zip(steps[good].tolist(), limit[good].tolist(), strict=True))


def _most(kind: str, sets: Sequence[object]) -> float:
    """Returns the most that a coordinate can move, in learning rates; NaN where nothing is known.

    >>> round(_most("Adam", [{"betas": [0.9, 0.999]}]), 2), _most("Adagrad", [{}]), _most("Lion", [{}])
    (7.27, 1.0, 1.0)
    """
    found = [largest_update(kind, each if isinstance(each, Mapping) else {}) for each in sets]
    most = [sup if name in BOUNDED and math.isfinite(sup) else math.nan for name, sup in found]
    return float(np.max(most)) if most else math.nan
