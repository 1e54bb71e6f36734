"""Liu et al. 2026, Grokking or Glitching? (arXiv 2605.06152): low precision makes loss spikes, and how none is left.

In a confident classifier the right class's gradient is rounded to exactly zero while the wrong classes' are not. The
class sum is then no longer zero, the class mean of the head and the mean feature push each other apart, and hundreds
of steps later Adam loses the fit; it finds it again, and the cycle goes on. Claimed: that rounding alone does it, and
whatever mends the gradient ends it.

One network of 4,522 parameters on 200 digits, trained far beyond its fit, each time with one thing changed; where
floats lose the right class, by type and number of classes; and modular addition, where spikes were said to teach.
"""

from __future__ import annotations

from foreshock.papers.absorption_arms import HALF, STEPS
from foreshock.papers.absorption_figures import figures
from foreshock.papers.absorption_statements import SOURCE, STATEMENTS
from foreshock.papers.absorption_studies import COLUMNS, causes, cures, descent, formats, settings, timeline
from foreshock.papers.absorption_thresholds import thresholds
from foreshock.papers.absorption_training import PAPER
from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen
from foreshock.papers.modular_statements import GROKKING
from foreshock.papers.modular_study import STEPS as MODULAR_STEPS
from foreshock.papers.modular_study import grokking
from foreshock.papers.studies import Study, seeds_of, study

__all__ = ["EXPERIMENT", "QUICK", "STUDIES", "reproduce"]

LEAST = 100  # steps of a training that is to show anything

STUDIES = {
    "thresholds": Study("Where floats lose the right class, by type and classes", thresholds, 1, 0, seeded=False),
    "timeline": Study("The reference run, watched; the same in float64 and with the exact loss", timeline, 24, STEPS),
    "cures": Study("Loss in float64, margin form, repaired and centred gradients, centred head", cures, 26, STEPS),
    "causes": Study("The gradient removed in float64; the exact loss from a checkpoint on", causes, 13, STEPS),
    "settings": Study("eps, a clamp, weight decay, label smoothing, one hidden layer", settings, 36, STEPS),
    "formats": Study("Logits in bfloat16 and float16", formats, 11, STEPS),
    "descent": Study("Plain gradient descent at a learning rate of 100,000", descent, 4, 1200),
    "grokking": Study("Two networks on modular addition, and what they make of questions not taught", grokking, 60,
                      MODULAR_STEPS),
}
QUICK = ("thresholds", "timeline", "cures", "causes")


def reproduce(request: Request, progress: Progress = lambda share, text: None) -> Outcome:
    """Trains what is asked for with every seed, and judges the claims that this decides.

    Quick: a few studies, of the first 2,600 steps.

    Raises:
        UsageError: an unknown training, no seed, or too few steps.
        MissingExtraError: scikit-learn, which brings the digits, is not installed.
    """
    names, seeds = chosen(request, STUDIES, QUICK), seeds_of(request, LEAST)
    steps = request.steps or (HALF if request.quick else 0)
    studied = study(STUDIES, names, seeds, steps, progress)
    short = [name for name in names if 0 < steps < STUDIES[name].steps]
    remarks = [f"shorter than usual, which leaves claims undecided: {', '.join(short)}"] if short else []
    return studied.outcome((*STATEMENTS, *GROKKING), COLUMNS, lambda: figures(studied.found), remarks=remarks)


EXPERIMENT = Experiment(
    name=PAPER,
    title="Grokking or Glitching? How Low-Precision Drives Slingshot Loss Spikes",
    source=SOURCE,
    summary="Trains one classifier far beyond its fit, in float32 with torch's cross-entropy and with twenty changes: "
    "rounding of the right class's gradient alone makes it spike again and again, the monitor says so hundreds of "
    "steps ahead, and an exact gradient, in whatever way it is had, leaves no spike and the losses of float64.",
    trainings={name: each.title for name, each in STUDIES.items()},
    reproduce=reproduce,
)
