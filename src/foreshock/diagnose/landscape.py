"""The cause `landscape`: the loss became sharper until the step was too long for it.

Source: Cohen et al. 2022, arXiv 2207.14484; Li, Xu and Zhang 2023, arXiv 2305.12133.
"""

from __future__ import annotations

from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.edge import CONTRADICTS, REFERENCES, held, verdict
from foreshock.diagnose.wording import number
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "landscape"
ADVICE = (
    "Lower the learning rate for good, or warm it up over more steps: at the edge it is too long for the curvature.",
    'Read chi more often, so that the next one is seen coming: `Monitor(..., max_overhead=0.2)`; '
    "`foreshock.Guard(monitor)` then holds it by itself.",
)


def landscape(run: Run, event: Event) -> Cause | None:
    """Returns how likely the landscape carried the optimizer over its edge; None where chi was not read close by.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent (of `chi_gradient`), transient, spike or divergence.
    """
    judged = verdict(run, event)
    if judged is None:
        return None
    found, score = judged.found, judged.score(NAME)
    said = list(judged.said)
    if found is not None and found.how.hessian is not None:
        first, last = found.how.hessian
        said.append(f"The top eigenvalue of the Hessian went from {number(first)} to {number(last)}.")
    todo: tuple[str, ...] = ()
    if score >= RULED_OUT:
        todo = held(run, event, found, "lr") if found is not None else ADVICE
    references = (*REFERENCES, "Li, Xu and Zhang 2023, arXiv 2305.12133")
    against = tuple(f"Here: {each}" for each in judged.against)
    return Cause(NAME, score, tuple(said), (*against, *CONTRADICTS), todo, references, judged.signals)
