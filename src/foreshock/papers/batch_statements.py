"""What is claimed of batch sizes, noise scales, goodput and switches: intervals, judged seed by seed."""

from __future__ import annotations

import math

from foreshock.papers.batch_policy import FIXED_COSTS
from foreshock.papers.batch_tasks import TASKS
from foreshock.papers.studies import Statement

__all__ = ["SOURCE", "STATEMENTS"]

SOURCE = "COPUS: batch size and parallelism by goodput, arXiv 2604.26687"
MCCANDLISH = "McCandlish, Kaplan, Amodei et al. 2018, An Empirical Model of Large-Batch Training, arXiv 1812.06162"
POLLUX = "Qiao et al. 2021, Pollux, arXiv 2008.12260"
DERIVED = "derived here"
MALLADI = "Malladi et al. 2022, arXiv 2205.10287"
INF = math.inf


def _of(number: str, text: str, low: float, high: float, source: str) -> Statement:
    return Statement(number, text, low, high, source)


def _steps(name: str) -> tuple[Statement, ...]:
    title = TASKS[name].title
    return (
        _of(f"{name}: misfit", f"{title}: steps are S_min + E_min/B; misfit", 0, 0.25, MCCANDLISH),
        _of(f"{name}: critical over simple", "... B_crit over the noise scale on the way", 1 / 3, 3, MCCANDLISH),
        _of(f"{name}: critical over preconditioned", "... over that of preconditioned gradients", 1 / 3, 3, POLLUX),
        _of(f"{name}: noise grows", "... the noise scale grows: last third over first", 1, INF, MCCANDLISH),
        _of(f"{name}: lr slope", "... best lr as root of B, up to 2 B_crit: exponent", 0.35, 0.65, MALLADI),
    )


_DESCENT = (
    _of("digits-sgd: misfit", "SGD on digits: steps are S_min + E_min/B; misfit", 0, 0.25, MCCANDLISH),
    _of("digits-sgd: critical over simple", "... B_crit over the simple noise scale", 1 / 3, 3, MCCANDLISH),
    _of("digits-sgd: lr slope", "... best lr goes with B, well below B_crit: exponent", 0.7, 1.1, MCCANDLISH),
    _of("digits-sgd: lr turns over simple", "... as eta_max/(1 + N/B): N over the noise scale", 1 / 3, 3, MCCANDLISH),
    _of("digits-sgd: lr misfit", "... root mean square distance from that law", 0, 0.3, MCCANDLISH),
)
_POLICY = tuple(
    statement
    for name in ("digits", "fashion")
    for cost in FIXED_COSTS
    for statement in (
        _of(f"{name}, a={cost:g}: regret", f"{TASKS[name].title}, T = {cost:g} + B: time at the size of highest "
            "goodput, over the fastest fixed one", 1, 1.1, SOURCE),
        _of(f"{name}, a={cost:g}: policy c=2", "... the policy, over the fastest fixed size", 0, 1, SOURCE),
        _of(f"{name}, a={cost:g}: policy c=2 over start", "... over the size that it began with", 0, 1, SOURCE),
        _of(f"{name}, a={cost:g}: policy c=4", "... the policy with B_c four times the noise scale", 0, 1, DERIVED),
        _of(f"{name}, a={cost:g}: policy c=4 over start", "... over the size that it began with", 0, 1, DERIVED),
    )
)  # fmt: skip


def _switches(name: str) -> tuple[Statement, ...]:
    title = TASKS[name].title
    return (
        _of(f"{name} up, keep: highest chi", f"{title}, batch x 16, lr x 4, moments kept: highest chi, over before",
            3, INF, DERIVED),
        _of(f"{name} up: first chi, rescale over keep", "... rescaled: first chi, over kept", 1, INF, DERIVED),
        _of(f"{name} up: predicted", "... that is 1/sqrt of the predicted ratio, times", 0.67, 1.5, DERIVED),
        _of(f"{name} up, reset: highest chi", "... reset: highest chi, over that before", 10, INF, DERIVED),
        _of(f"{name} down, keep: highest chi", "... batch and lr back down, kept: highest chi, over that before", 0, 1,
            DERIVED),
        _of(f"{name} down: first chi, rescale over keep", "... rescaled: first chi, over kept", 0, 1, DERIVED),
        _of(f"{name} down, reset: highest chi", "... reset: highest chi, over that before", 1, INF, DERIVED),
        _of(f"{name}: false spikes", "... six declared switches: spikes raised", 0, 0, DERIVED),
    )  # fmt: skip


STATEMENTS = (
    *(each for name in TASKS for each in _steps(name)),
    *_DESCENT,
    *_POLICY,
    *(each for name in TASKS for each in _switches(name)),
    _of("fashion: clock regret", "Measured step times: size of highest goodput, over the fastest", 1, 1.15, SOURCE),
)
