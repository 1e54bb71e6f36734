"""Bai et al. 2025, Adaptive Preconditioners Trigger Loss Spikes in Adam (arXiv 2506.04805), from a parabola to novels.

Claimed: Adam spikes where its second moment v stops following the squared gradient. v decays at beta2, which raises the
preconditioned curvature, until chi has stayed above its edge of 1; then the gradient turns into that direction, the
loss rises, and v is filled up again. The raw curvature has no part in it. A larger eps or a lower beta2 is the cure.

Trainings: a parabola, where every step is known in closed form; a wide network of 52,001 parameters whose loss jumps
from 1e-8 to 4; a network of 61 parameters that spikes some thirty times, its whole Hessian read at each of 8,000 steps,
with other settings, with settings changed at the alarm, and in batches; a small Transformer that learns from novels.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

from foreshock.errors import MissingExtraError, UsageError
from foreshock.papers import adam_claims
from foreshock.papers.adam_claims import SOURCE, judge
from foreshock.papers.adam_cures import cures
from foreshock.papers.adam_figures import figures
from foreshock.papers.adam_quadratic import quadratic
from foreshock.papers.adam_sines import BATCH_STEPS, STEPS, batches, sine_spikes
from foreshock.papers.adam_study import COLUMNS, Found
from foreshock.papers.adam_text import TEXT_STEPS, text_spikes
from foreshock.papers.adam_wide import STEPS as WIDE_STEPS
from foreshock.papers.adam_wide import wide_spike
from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen

__all__ = ["EXPERIMENT", "QUICK", "TRAININGS", "Training", "reproduce"]


@dataclass(frozen=True, slots=True)
class Training:
    """One training: what it is, its function of (seed, live, steps), its own number of steps, and what it costs.

    `steps` is 0 where the number is not free; `cost` is in seconds of one core; `seeded`: whether a seed changes it.
    """

    title: str
    study: Callable[..., Found]
    steps: int
    cost: float
    seeded: bool = True


TRAININGS = {
    "parabola": Training("Adam on a parabola, against closed forms", quadratic, 0, 3, seeded=False),
    "wide": Training("1,000 tanh units, a quadratic form in 50 dimensions", wide_spike, WIDE_STEPS, 23),
    "sines": Training("20 tanh units on two sines, every Hessian", sine_spikes, STEPS, 9),
    "sines-cures": Training("the same with other eps, beta2, lr and beta1", cures, STEPS, 9),
    "sines-batches": Training("the same on 200 points, in batches of 200 and of 100", batches, BATCH_STEPS, 6),
    "transformer": Training("a character Transformer on novels, three beta2", text_spikes, TEXT_STEPS, 90),
}
QUICK = ("parabola", "sines")


def reproduce(request: Request, progress: Progress = lambda share, text: None) -> Outcome:
    """Trains what is asked for with every seed, and judges the claims that this decides.

    Raises:
        UsageError: an unknown training, no seed, or too few steps.
    """
    names = chosen(request, TRAININGS, QUICK)
    if not request.seeds or (request.steps is not None and request.steps < LEAST):
        raise UsageError(
            f"at least one seed and {LEAST} steps are needed; given seeds={request.seeds}, steps={request.steps}"
        )
    seeds = tuple(dict.fromkeys(request.seeds))
    total = sum(TRAININGS[name].cost * (len(seeds) if TRAININGS[name].seeded else 1) for name in names)
    found: dict[int, dict[str, Found]] = {seed: {} for seed in seeds}
    remarks: list[str] = []
    done = 0.0
    for name in names:
        training = TRAININGS[name]
        for seed in seeds:
            if not training.seeded and seed != seeds[0]:
                found[seed][name] = Found(found[seeds[0]][name].numbers)
                continue

            def live(share: float, text: str, before: float = done, cost: float = training.cost) -> None:
                progress((before + share * cost) / total, text)

            try:
                with _one_core():
                    found[seed][name] = training.study(seed, live, _steps(training, request))
            except MissingExtraError as error:
                remarks.append(f"left out: {training.title}; {error}")
                break
            done += training.cost
    progress(1.0, "")
    short = [name for name in names if _steps(TRAININGS[name], request) < TRAININGS[name].steps]
    if short:
        remarks.append(f"shorter than usual, which leaves claims undecided: {', '.join(short)}")
    if len(names) < len(TRAININGS):
        remarks.append(f"not trained: {', '.join(name for name in TRAININGS if name not in names)}")
    return Outcome(
        claims=judge(adam_claims.STATEMENTS, found, set(names) - set(short)), columns=COLUMNS,
        rows=[row for runs in found.values() for study in runs.values() for row in study.rows],
        runs={
            place if place.startswith("parabola") else f"{place}-seed-{seed}": run
            for seed, runs in found.items() for study in runs.values() for place, run in study.runs.items()
        },
        remarks=remarks, figures=lambda: figures(found),
    )


LEAST = 100  # steps of a training that is to show anything


def _one_core() -> AbstractContextManager[Any]:
    """Holds numpy's linear algebra to one thread, where threadpoolctl (it comes with scikit-learn) is there to do it.

    On matrices of 61 x 61 a second thread only waits: on a busy machine of two cores, 110 s of `--quick` instead of 24.
    """
    try:
        controls = importlib.import_module("threadpoolctl")
    except ImportError:
        return nullcontext()
    limits: AbstractContextManager[Any] = controls.threadpool_limits(1)
    return limits


def _steps(training: Training, request: Request) -> int:
    return min(training.steps, request.steps or training.steps)


EXPERIMENT = Experiment(
    name="adam-spikes",
    title="Adaptive Preconditioners Trigger Loss Spikes in Adam",
    source=SOURCE,
    summary="Trains a parabola, two networks and a Transformer with Adam, and shows that loss spikes come from its "
    "second moment: chi passes 1 tens of steps before each of them while the raw curvature stays flat, the five stages "
    "follow in order, and a larger eps or a lower beta2 removes them at a cost.",
    trainings={name: each.title for name, each in TRAININGS.items()},
    reproduce=reproduce,
)
