"""One file for each paper: the experiments that reproduce it, for `foreshock reproduce NAME`.

Needs torch, and the extras `demo` (the data) and, for the figures, `figures`. A paper is imported when it is asked for.
"""

from __future__ import annotations

import difflib
import importlib
from typing import TYPE_CHECKING

from foreshock.errors import UsageError

if TYPE_CHECKING:
    from foreshock.papers.experiment import Experiment

__all__ = ["PAPERS", "paper"]

# name -> (module of foreshock.papers that holds its EXPERIMENT, what it is about)
PAPERS = {
    "edge-of-stability": ("edge_of_stability", "Adaptive Gradient Methods at the Edge of Stability, arXiv 2207.14484"),
    "landscape-spikes": ("landscape_spikes", "Loss Spike in Training Neural Networks, arXiv 2305.12133"),
    "adam-spikes": ("adam_spikes", "Adaptive Preconditioners Trigger Loss Spikes in Adam, arXiv 2506.04805"),
    "softmax-absorption": (
        "softmax_absorption",
        "Grokking or Glitching? How Low-Precision Drives Slingshot Loss Spikes, arXiv 2605.06152",
    ),
    "s3": ("s3", "SoftSignSGD (S3), arXiv 2507.06464"),
    "new-heads": (
        "new_heads",
        "A Good Start Matters: Enhancing Continual Learning with Data-Driven Weight Initialization, arXiv 2503.06385",
    ),
    "batch-size": ("batch_size", "COPUS: batch size by goodput, on gradient noise scales, arXiv 2604.26687"),
}


def paper(name: str) -> Experiment:
    """Returns the experiment that reproduces a paper. Errors: UsageError for a name that is not in `PAPERS`."""
    if name not in PAPERS:
        near = difflib.get_close_matches(name, PAPERS, n=1, cutoff=0.3)
        meant = f"did you mean {near[0]!r}? " if near else ""
        raise UsageError(f"there is no paper {name!r} to reproduce; {meant}known: {', '.join(PAPERS)}")
    module = importlib.import_module(f"foreshock.papers.{PAPERS[name][0]}")
    experiment: Experiment = module.EXPERIMENT
    return experiment
