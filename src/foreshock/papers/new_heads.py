"""New head rows (A Good Start Matters, arXiv 2503.06385): what they cost when a network is given new classes.

Claimed: rows drawn at random make the loss leap at every task; rows taken from data (class means, least squares) know
the new classes before any training, converge in up to seven times fewer updates, and leave no leap. The paper does not
say what becomes of the old classes: here they are always tested beside the new ones.

Digits behind random features, Fashion-MNIST in three splits behind a small convolutional network that stands still or
moves, with cross-entropy and squared error, a small language model that is given whole words; each with all ways to
choose the rows, from the same start and on the same batches.
"""

from __future__ import annotations

from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen
from foreshock.papers.heads_figures import figures
from foreshock.papers.heads_measures import COLUMNS
from foreshock.papers.heads_statements import SOURCE, STATEMENTS
from foreshock.papers.heads_studies import buffers, digits, five, moving, pairs, six
from foreshock.papers.heads_text import words
from foreshock.papers.heads_training import PAPER
from foreshock.papers.studies import Study, seeds_of, study

__all__ = ["EXPERIMENT", "QUICK", "STUDIES", "reproduce"]

LEAST = 30  # steps of a task that are to show anything
STEPS = 200

STUDIES = {
    "digits": Study("Five digits, then five more, behind random features; cross-entropy and squared error", digits, 20),
    "five": Study("Garments: five classes, then five, behind a network that stands still", five, 20),
    "six": Study("Garments: six classes, then four", six, 20),
    "pairs": Study("Garments: five tasks of two classes", pairs, 46),
    "buffers": Study("Garments, five and five, with 50 and 200 rehearsed examples a class", buffers, 10),
    "moving": Study("All three splits with the backbone training on", moving, 100),
    "words": Study("A language model of characters is given 24 words, tied to its embedding or not", words, 100),
}
QUICK = ("digits", "five")


def reproduce(request: Request, progress: Progress = lambda share, text: None) -> Outcome:
    """Trains what is asked for with every seed, and judges the claims that this decides.

    Quick: digits and one split of the garments, with the first seed.

    Raises:
        UsageError: an unknown training, no seed, or too few steps.
        MissingExtraError: none of the data that are asked for are installed.
    """
    names = chosen(request, STUDIES, QUICK)
    seeds, steps = seeds_of(request, LEAST)[: 1 if request.quick else None], request.steps or 0
    studied = study(STUDIES, names, seeds, steps, progress)
    remarks = [f"{steps} steps a task in the place of {STEPS}"] if steps and steps != STEPS else []
    if len(seeds) < len(request.seeds):
        remarks.append(f"quick: seed {seeds[0]} alone")
    return studied.outcome(STATEMENTS, COLUMNS, lambda: figures(studied.found), remarks=remarks)


EXPERIMENT = Experiment(
    name=PAPER,
    title="A Good Start Matters: Enhancing Continual Learning with Data-Driven Weight Initialization",
    source=SOURCE,
    summary="Gives classifiers new classes, their head rows chosen at random, from class means and by least squares, "
    "calibrated or not: how high the loss leaps, what old and new classes know before and after, and what the "
    "detectors say, with features that stand still and that move on.",
    trainings={name: each.title for name, each in STUDIES.items()},
    reproduce=reproduce,
)
