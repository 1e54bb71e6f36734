"""Li, Xu, Zhang 2023, Loss Spike in Training Neural Networks (arXiv 2305.12133): its claims, and its open checks.

Plain gradient descent without momentum, on the whole batch. A small tanh network on sin x + sin 4x, in float64 with its
exact Hessian, and a small CNN with max pooling on 1,000 images. Claimed: descent leads to sharper ground, until
lambda_max is above 2/lr; then the loss climbs along the sharpest direction, to flatter ground, and comes down again;
the change is one of low frequency; spikes say little about generalisation, and neurons condense.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen
from foreshock.papers.landscape_arms import arms
from foreshock.papers.landscape_crossing import crossing
from foreshock.papers.landscape_figures import figures
from foreshock.papers.landscape_frequencies import directions
from foreshock.papers.landscape_image_studies import image_arms, image_labels, image_rates, image_run
from foreshock.papers.landscape_rates import rates
from foreshock.papers.landscape_reference import reference
from foreshock.papers.landscape_statements import SOURCE, STATEMENTS
from foreshock.papers.studies import Study, seeds_of, study

__all__ = ["EXPERIMENT", "QUICK", "STUDIES", "reproduce"]

COLUMNS = ("training", "seed", "updates", "spikes", "highest", "lead", "max chi", "final loss", "seconds")

STUDIES = {
    "tl-gd": Study("TL-GD: 20 tanh neurons on sin x + sin 4x, lr 0.05, dissected", reference, 8),
    "tl-gd-rates": Study("The same at lr 0.02 and 0.1", rates, 3, 3000),
    "crossing": Study("Claim 3: the edge crossed where lower is flatter, and where it is sharper", crossing, 3, 8000),
    "directions": Study("Check 2 and claim 5: frequencies of eigendirections, with controls", directions, 9, 10_000),
    "condensation": Study("Check 3: three arms from one checkpoint of TL-GD", arms, 1),
    "cnn": Study("A CNN on 1,000 images, lr 0.1, until a spike is over", image_run, 60),
    "cnn-rates": Study("The same at lr 0.05 and 0.2, for the first seed only", image_rates, 60, 650, seeded=False),
    "cnn-labels": Study("The same with random and with wrong labels: check 2 and claim 5", image_labels, 35, 400),
    "cnn-condensation": Study("Check 3 on the CNN: three arms from one checkpoint", image_arms, 20),
}
QUICK = ("tl-gd",)


def reproduce(request: Request, progress: Progress = lambda share, text: None) -> Outcome:
    """Runs the studies that are asked for, with every seed, and judges the claims that they decide.

    Trainings on images are left out, with a remark, where the images are not installed.

    Raises:
        UsageError: an unknown training, no seed, or fewer than two steps.
    """
    names, seeds = chosen(request, STUDIES, QUICK), seeds_of(request, 2)[: 1 if request.quick else None]
    studied = study(STUDIES, names, seeds, request.steps or 0, progress)
    if request.steps is not None:
        short = {name for name in names if request.steps < STUDIES[name].steps}
        studied = replace(studied, found={
            seed: {name: replace(each, numbers={}) if name in short else each for name, each in studies.items()}
            for seed, studies in studied.found.items()
        })  # fmt: skip
    return studied.outcome(STATEMENTS, COLUMNS, lambda: figures(studied.found), remarks=_remarks(request, seeds, names))


def _remarks(request: Request, seeds: Sequence[int], names: Sequence[str]) -> list[str]:
    """Returns what was not done as usual."""
    remarks = []
    if request.quick:
        remarks.append(f"quick: {', '.join(names)} only, seed {seeds[0]}, of {len(STUDIES)} parts")
    once = [name for name in names if not STUDIES[name].seeded]
    if len(seeds) > 1 and once:
        remarks.append(f"for seed {seeds[0]} only: {', '.join(once)}")
    if request.steps is not None:
        remarks.append(f"{request.steps:,} updates in place of each training's own; that leaves claims undecided")
    if 0 not in seeds and "tl-gd" in names:
        remarks.append("the published steps and shares, L1, L2 and L4, are those of seed 0, which was not asked for")
    return remarks


EXPERIMENT = Experiment(
    name="landscape-spikes",
    title="Loss Spike in Training Neural Networks",
    source=SOURCE,
    summary="Trains a small tanh network and a small CNN by plain gradient descent, dissects the spikes that they meet "
    "at their edge of stability, and puts the paper's claims and open checks to the test.",
    trainings={name: study.title for name, study in STUDIES.items()},
    reproduce=reproduce,
)
