"""Batch sizes by goodput (COPUS, arXiv 2604.26687), on measured noise scales and measured steps to a loss.

The noise of gradients says how far a larger batch saves steps: S = S_min + E_min/B, with a critical batch size near the
noise scale (McCandlish et al. 2018, arXiv 1812.06162). Goodput weighs that against the time of a step. Claimed: that
noise scale and critical batch size agree, that learning rates follow the root of the batch under Adam, that following
goodput beats any fixed size, and that a switch of the batch is harmless where the optimizer's moments are handled well.

Small networks on digits, Fashion-MNIST and novels of Jane Austen, at 8 to 1,024 examples a batch. What is not
reproduced: parallelism, and anything on more than one device.
"""

from __future__ import annotations

from functools import partial

from foreshock.papers.batch_figures import figures
from foreshock.papers.batch_statements import SOURCE, STATEMENTS
from foreshock.papers.batch_studies import COLUMNS, clock, descent, policy, steps, switches
from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen
from foreshock.papers.studies import Study, seeds_of, study

__all__ = ["EXPERIMENT", "QUICK", "STUDIES", "reproduce"]

SHORT = 100  # steps after a switch, when quick

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
        MissingExtraError: no data set that it needs is installed.
    """
    names, seeds = chosen(request, STUDIES, QUICK), seeds_of(request, 1)
    studied = study(STUDIES, names, seeds, request.steps or (SHORT if request.quick else 0), progress)
    return studied.outcome(STATEMENTS, COLUMNS, lambda: figures(studied.found))


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
