"""Steps to a loss against batch size, each at its best learning rate: the critical batch size, and how lr follows."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from foreshock.batch_size.times import line_through
from foreshock.papers.batch_tasks import Task
from foreshock.papers.batch_training import Arrival, Noise, arrive

__all__ = ["Sweep", "TradeOff", "critical", "lr_slope", "sweep", "trade_off", "turning"]

GRID = 2.0  # between learning rates that are tried
GIVEN_UP = 1.3  # times the steps of the best learning rate so far, after which another is given up
TRIES = 6  # learning rates for one batch size, at most


@dataclass(frozen=True, slots=True)
class Sweep:
    """Arrivals at each batch size.

    Attributes:
        arrivals: batch size -> all that were tried.
        noise: along the training at the reference batch size and its best learning rate.
        reference: that size.
    """

    arrivals: dict[int, list[Arrival]]
    noise: Sequence[Noise]
    reference: int

    def best(self, batch: int) -> Arrival:
        """Returns the arrival with the fewest steps."""
        return min(self.arrivals[batch], key=lambda each: each.steps)

    @property
    def steps(self) -> dict[int, float]:
        """Batch size -> fewest steps, where the loss was reached."""
        best = {batch: self.best(batch).steps for batch in self.arrivals}
        return {batch: steps for batch, steps in best.items() if math.isfinite(steps)}

    @property
    def rates(self) -> dict[int, float]:
        """Batch size -> best learning rate, refined by a parabola of ln steps in ln lr through its neighbours."""
        return {batch: _vertex(self.arrivals[batch]) for batch in self.steps}


@dataclass(frozen=True, slots=True)
class TradeOff:
    """S = S_min + E_min/B, which is (S/S_min - 1)(E/E_min - 1) = 1; `misfit`: largest relative distance from it."""

    steps: float
    examples: float
    misfit: float

    @property
    def critical(self) -> float:
        """B_crit = E_min/S_min."""
        return self.examples / self.steps if self.steps > 0 else math.inf


def trade_off(steps: dict[int, float]) -> TradeOff:
    """Returns S_min and E_min from steps by batch size, least squares in relative errors.

    >>> found = trade_off({8: 135.0, 32: 60.0, 128: 41.25})
    >>> round(found.steps, 6), round(found.examples, 6), round(found.critical, 6)
    (35.0, 800.0, 22.857143)
    """
    sizes = np.array(sorted(steps), float)
    examples = np.array([steps[int(size)] * size for size in sizes])
    least, fewest, misfit = line_through(sizes, examples)
    return TradeOff(fewest, least, misfit)


def sweep(
    task: Task, seed: int, batches: Sequence[int], *, optimizer: str = "adam", rate: float | None = None,
    reference: int = 64, told: Callable[[float], None] = lambda share: None,
) -> Sweep:  # fmt: skip
    """Returns arrivals at each batch size; learning rates are searched upwards and downwards from the last best.

    Args:
        task, seed: what is trained.
        batches: ascending.
        optimizer: one of `batch_training.OPTIMIZERS`.
        rate: where the search begins, at the first size; by default the task's.
        reference: batch size at which the noise is measured.
        told: how far it is.
    """
    arrivals: dict[int, list[Arrival]] = {}
    start = task.rate if rate is None else rate
    for place, batch in enumerate(batches):
        arrivals[batch] = _search(task, seed, batch, start, optimizer)
        start = min(arrivals[batch], key=lambda each: each.steps).lr
        told((place + 1) / (len(batches) + 1))
    at = reference if reference in arrivals else batches[len(batches) // 2]
    best = min(arrivals[at], key=lambda each: each.steps)
    noise = arrive(task, seed, at, best.lr, optimizer=optimizer, noisy=True, most=2 * best.steps + 10).noise
    return Sweep(arrivals, noise, at)


def _search(task: Task, seed: int, batch: int, start: float, optimizer: str) -> list[Arrival]:
    tried: dict[int, Arrival] = {}

    def at(place: int) -> float:
        if place not in tried:
            best = min((each.steps for each in tried.values()), default=math.inf)
            most = GIVEN_UP * best if math.isfinite(best) else 600.0 + 120_000.0 / batch
            tried[place] = arrive(task, seed, batch, start * GRID**place, optimizer=optimizer, most=math.ceil(most))
        return tried[place].steps

    here = 0
    at(here)
    while len(tried) < TRIES:
        if at(here + 1) < at(here):
            here += 1
        elif at(here - 1) < at(here):
            here -= 1
        elif math.isinf(at(here)):
            here -= 1  # it diverges
        else:
            break
    return list(tried.values())


def _vertex(arrivals: Sequence[Arrival]) -> float:
    """Returns the learning rate at the vertex of a parabola through the best and its two neighbours."""
    ranked = sorted((each for each in arrivals if math.isfinite(each.steps)), key=lambda each: each.lr)
    place = min(range(len(ranked)), key=lambda i: ranked[i].steps)
    if not 0 < place < len(ranked) - 1:
        return ranked[place].lr
    x = [math.log(each.lr) for each in ranked[place - 1 : place + 2]]
    y = [math.log(each.steps) for each in ranked[place - 1 : place + 2]]
    second, first, _ = np.polyfit(x, y, 2)
    return math.exp(min(x[2], max(x[0], -first / (2.0 * second)))) if second > 0 else ranked[place].lr


def lr_slope(rates: dict[int, float], below: float) -> float:
    """Returns d ln lr / d ln B of the best learning rates, at batch sizes up to `below`; NaN for fewer than 3."""
    sizes = [size for size in sorted(rates) if size <= below]
    if len(sizes) < 3:
        return math.nan
    slope, _ = np.polyfit(np.log(sizes), np.log([rates[size] for size in sizes]), 1)
    return float(slope)


def turning(rates: dict[int, float]) -> tuple[float, float, float]:
    """Returns eta_max, B_noise and the relative misfit (root mean square) of eta_max/(1 + B_noise/B).

    >>> [round(value, 1) for value in turning({8: 0.8, 32: 2.0, 128: 3.2})]
    [4.0, 32.0, 0.0]
    """
    sizes, found = np.array(sorted(rates), float), np.array([rates[size] for size in sorted(rates)])
    best = (math.inf, 0.0, 0.0)
    for noise in np.geomspace(0.1, 1e5, 2001):
        shape = 1.0 / (1.0 + noise / sizes)
        top = math.exp(float(np.mean(np.log(found / shape))))
        off = float(np.sqrt(np.mean(np.log(found / (top * shape)) ** 2)))
        best = min(best, (off, top, float(noise)))
    off, top, noise = best
    return top, noise, off


def critical(noise: Sequence[Noise], *, preconditioned: bool = False) -> float:
    """Returns the noise scale along a training: the mean of its logarithm over the steps; NaN where there is none.

    Each reading, itself a ratio of sums over 2,048 examples, counts by the steps since the last.
    """
    if not noise:
        return math.nan
    steps = np.array([each.step for each in noise], float)
    first = 0.0 if len(steps) == 1 else max(0.0, 2.0 * steps[0] - steps[1])
    weights = np.diff(steps, prepend=first)
    ratios = np.array([each.preconditioned if preconditioned else each.simple for each in noise])
    there = np.isfinite(ratios) & (ratios > 0)
    if not there.any():
        return math.nan
    return float(np.exp((weights * np.log(np.where(there, ratios, 1.0)))[there].sum() / weights[there].sum()))
