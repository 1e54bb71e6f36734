"""Batch sizes by goodput (COPUS, arXiv 2604.26687), on measured noise scales and measured steps to a loss.

The noise of gradients says how far a larger batch saves steps: S = S_min + E_min/B, with a critical batch size near the
noise scale (McCandlish et al. 2018, arXiv 1812.06162). Goodput weighs that against the time of a step. Claimed: that
noise scale and critical batch size agree, that learning rates follow the root of the batch under Adam, that following
goodput beats any fixed size, and that a switch of the batch is harmless where the optimizer's moments are handled well.

Small networks on digits, Fashion-MNIST and novels of Jane Austen, at 8 to 1,024 examples a batch. What is not
reproduced: parallelism, and anything on more than one device.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

from foreshock.errors import UsageError
from foreshock.papers.batch_figures import figures
from foreshock.papers.batch_statements import SOURCE, STATEMENTS
from foreshock.papers.batch_studies import COLUMNS, clock, descent, policy, steps, switches
from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen
from foreshock.papers.landscape_study import Found, Live, Shelf, judge
from foreshock.threads import one_thread

__all__ = ["EXPERIMENT", "QUICK", "STUDIES", "Study", "reproduce"]

SHORT = 100  # steps after a switch, when quick


@dataclass(frozen=True, slots=True)
class Study:
    """A part of the reproduction: what it is, its function of (seed, live, steps or 0, shelf), seconds on one core."""

    title: str
    run: Callable[[int, Live, int, Shelf], Found]
    seconds: float


STUDIES = {
    "digits": Study("Steps to a loss by batch size, digits", partial(steps, "digits"), 11),
    "fashion": Study("The same, Fashion-MNIST", partial(steps, "fashion"), 24),
    "austen": Study("The same, a transformer on Jane Austen", partial(steps, "austen"), 68),
    "descent": Study("The same by plain gradient descent, digits", descent, 9),
    "policy": Study("The goodput policy against fixed sizes, in modelled time", policy, 10),
    "clock": Study("Goodput with measured step times, Fashion-MNIST", clock, 1),
    "switches-digits": Study("Switches of the batch by 16, digits", partial(switches, "digits"), 10),
    "switches-fashion": Study("The same, Fashion-MNIST", partial(switches, "fashion"), 9),
    "switches-austen": Study("The same, Jane Austen", partial(switches, "austen"), 60),
}
QUICK = ("digits", "policy", "switches-digits")


def reproduce(request: Request, progress: Progress = lambda share, text: None) -> Outcome:
    """Trains what is asked for with every seed, and judges the claims that this decides.

    Quick: digits only, and 100 steps after each switch. `steps` is the number of those.

    Raises:
        UsageError: an unknown training, no seed, or too few steps.
        MissingExtraError: a data set is not installed.
    """
    names = chosen(request, STUDIES, QUICK)
    if not request.seeds or (request.steps is not None and request.steps < 1):
        raise UsageError(f"at least one seed and one step are needed; given {request.seeds} and {request.steps}")
    seeds = tuple(dict.fromkeys(request.seeds))
    number = request.steps or (SHORT if request.quick else 0)
    plan = [(seed, name) for name in names for seed in seeds]
    total, done = sum(STUDIES[name].seconds for _, name in plan), 0.0
    found: dict[int, dict[str, Found]] = {seed: {} for seed in seeds}
    shelves: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}
    with one_thread():
        for seed, name in plan:
            weight = STUDIES[name].seconds

            def live(share: float, text: str, before: float = done, weight: float = weight) -> None:
                progress((before + share * weight) / total, text)

            found[seed][name] = STUDIES[name].run(seed, live, number, shelves[seed])
            done += weight
    progress(1.0, "")
    remarks = []
    if len(names) < len(STUDIES):
        remarks.append(f"not trained: {', '.join(name for name in STUDIES if name not in names)}")
    everything = [each for studies in found.values() for each in studies.values()]
    return Outcome(
        claims=judge(STATEMENTS, {seed: list(studies.values()) for seed, studies in found.items()}),
        columns=COLUMNS,
        rows=[row for each in everything for row in each.rows],
        runs={place: run for each in everything for place, run in each.runs.items()},
        remarks=remarks, figures=lambda: figures(found),
    )


EXPERIMENT = Experiment(
    name="batch-size",
    title="COPUS: batch size by goodput, on gradient noise scales",
    source=SOURCE,
    summary="Trains three small networks at batch sizes from 8 to 1,024, each at its best learning rate, and holds the "
    "steps that they take against the measured noise of their gradients; lets the batch follow goodput and compares "
    "with every fixed size; and switches the batch by 16 with Adam's moments kept, rescaled and reset.",
    trainings={name: each.title for name, each in STUDIES.items()},
    reproduce=reproduce,
)
