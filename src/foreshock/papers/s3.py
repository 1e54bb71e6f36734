"""S3, or SoftSignSGD (arXiv 2507.06464): one beta, an order of 3 and updates within one learning rate.

Claimed: S3 stands ten times AdamW's learning rate, without spikes and with no worse a loss, and reaches AdamW's loss in
half the steps; the reason is that numerator and denominator forget alike, which bounds each update by the lr.

Four small trainings (two sines on which Adam is known to spike, digits, images of clothes, novels), each with S3, AdamW
of three pairs of betas, Lion, AdaBelief and Adan at 1, 3, 10 and 30 times the lr that is best for AdamW; S3 with one
thing changed; with half the steps; the bound on streams of gradients made to break it; one bad batch; and whether S3
ends the spikes of rounding.
"""

from __future__ import annotations

from foreshock.papers.experiment import Experiment, Outcome, Progress, Request, chosen
from foreshock.papers.s3_bursts import STATEMENTS as BURSTS
from foreshock.papers.s3_bursts import bursts
from foreshock.papers.s3_figures import figures
from foreshock.papers.s3_rounding import rounding
from foreshock.papers.s3_statements import SOURCE, STATEMENTS
from foreshock.papers.s3_streams import bounds
from foreshock.papers.s3_studies import ablations, halves, raised, sweep
from foreshock.papers.s3_table import COLUMNS, rows
from foreshock.papers.s3_training import PAPER
from foreshock.papers.studies import Study, seeds_of, study

__all__ = ["EXPERIMENT", "QUICK", "STUDIES", "reproduce"]

LEAST = 100  # steps of a training that is to show anything
SHORT = 300  # steps of a quick one

STUDIES = {
    "bounds": Study("The largest update on streams of gradients made to break the bound", bounds, 3, 0, seeded=False),
    "sines": Study("Two sines, full batch: seven optimizers at 1x to 30x lr", raised("sines"), 70, 2000),
    "sines-ablations": Study("... p, betas and Nesterov of S3, equal betas of AdamW", ablations("sines"), 35, 2000),
    "digits": Study("Digits, MLP: seven optimizers at 1x to 30x lr", raised("digits"), 40, 500),
    "digits-ablations": Study("... p, betas, Nesterov, decay", ablations("digits"), 20, 500),
    "digits-halves": Study("... S3 with half of AdamW's steps, lr along a cosine", halves("digits"), 5, 500),
    "images": Study("Fashion-MNIST, CNN: seven optimizers at 1x to 30x lr", raised("images"), 50, 400),
    "images-ablations": Study("... p, betas, Nesterov, decay", ablations("images"), 25, 400),
    "images-halves": Study("... S3 with half of AdamW's steps, lr along a cosine", halves("images"), 6, 400),
    "text": Study("Austen, Transformer: seven optimizers at 1x to 30x lr", raised("text"), 70, 200),
    "text-ablations": Study("... p, betas, Nesterov, decay", ablations("text"), 35, 200),
    "text-halves": Study("... S3 with half of AdamW's steps, lr along a cosine", halves("text"), 8, 200),
    "bursts": Study("One bad step in a calm training: does the burst response tell how high the loss goes?", bursts, 45,
                    300),
    "rounding": Study("Does S3 end the spikes of low precision? 200 digits, far beyond the fit", rounding, 25, 3000),
    "sweep": Study("The lr that is best for AdamW .9/.999, which is 1x", sweep, 60, 200, seeded=False),
}
QUICK = ("bounds", "digits", "digits-halves")


def reproduce(request: Request, progress: Progress = lambda share, text: None) -> Outcome:
    """Trains what is asked for with every seed, and judges the claims that this decides.

    Quick: a few studies, of the first 300 steps. A study whose data are not installed is left out, and so are Lion,
    AdaBelief and Adan without pytorch-optimizer; the remarks say what to install.

    Raises:
        UsageError: an unknown training, no seed, or too few steps.
        MissingExtraError: the data of everything that is asked for are missing.
    """
    names, seeds = chosen(request, STUDIES, QUICK), seeds_of(request, LEAST)
    steps = request.steps or (SHORT if request.quick else 0)
    studied = study(STUDIES, names, seeds, steps, progress)
    short = [name for name in names if 0 < steps < STUDIES[name].steps]
    remarks = [f"shorter than usual, which claims were not made for: {', '.join(short)}"] if short else []
    return studied.outcome(
        (*STATEMENTS, *BURSTS), COLUMNS, lambda: figures(studied.found), remarks=remarks, rows=rows(studied.all)
    )


EXPERIMENT = Experiment(
    name=PAPER,
    title="SoftSignSGD (S3)",
    source=SOURCE,
    summary="Trains four small networks with S3, AdamW of three pairs of betas, Lion, AdaBelief and Adan at 1 to 30 "
    "times AdamW's best learning rate, takes S3 apart, and says which of its paper's claims hold here: the bound does, "
    "and so does a wider range of learning rates on some data; its cause, and half the steps, do not everywhere.",
    trainings={name: each.title for name, each in STUDIES.items()},
    reproduce=reproduce,
)
