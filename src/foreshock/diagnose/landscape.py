"""The cause `landscape`: the loss became sharper until the step was too long for it.

Source: Cohen et al. 2022, arXiv 2207.14484; Li, Xu and Zhang 2023, arXiv 2305.12133.
"""

from __future__ import annotations

from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.edge import CONTRADICTS, NEEDS, REFERENCES, driven, held
from foreshock.diagnose.wording import number
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "landscape"


def landscape(run: Run, event: Event) -> Cause | None:
    """Returns how likely the landscape carried the optimizer over its edge; None where chi was not read close by.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent (of `chi_gradient`), transient or spike.
    """
    found = driven(run, event)
    if found is None:
        return None
    score = found.strength * found.share("landscape")
    said = [found.passing, found.parts]
    if found.how.hessian is not None:
        first, last = found.how.hessian
        said.append(f"The top eigenvalue of the Hessian went from {number(first)} to {number(last)}.")
    todo = held(run, event, found, "lr") if score >= RULED_OUT else ()
    references = (*REFERENCES, "Li, Xu and Zhang 2023, arXiv 2305.12133")
    return Cause(NAME, score, tuple(filter(None, said)), CONTRADICTS, todo, references, NEEDS)
