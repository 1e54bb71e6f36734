"""The cause `preconditioner`: the second moment decayed until the step was too long for the curvature.

Source: Bai et al. 2025, arXiv 2506.04805.
"""

from __future__ import annotations

import math

from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.edge import CONTRADICTS, NEEDS, REFERENCES, driven, held
from foreshock.diagnose.wording import count, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "preconditioner"


def preconditioner(run: Run, event: Event) -> Cause | None:
    """Returns how likely the second moment drove the optimizer over its edge; None where chi was not read close by.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent (of `chi_gradient`), transient or spike.
    """
    found = driven(run, event)
    if found is None:
        return None
    how, score = found.how, found.strength * found.share("preconditioner")
    said = [found.passing, found.parts]
    free = next((stage for stage in how.stages.bounds if stage.name == "decoupled"), None)
    if free is not None:
        said.append(
            f"Before, the second moment decayed freely at beta2 for {count(free.last - free.first + 1, 'step')}, from "
            f"step {free.first:,}: squared gradients fed it with less than a tenth."
        )
    if how.tensor is not None and math.isfinite(how.tensor_share):
        said.append(f"The unstable direction lay in `{how.tensor}` ({percent(how.tensor_share)}).")
    if not how.marks.adam:
        said, score = ["The optimizer has no second moment."], 0.0
    todo = held(run, event, found, "eps", "floor", "beta2", "eps_crit") if score >= RULED_OUT else ()
    return Cause(NAME, score, tuple(filter(None, said)), CONTRADICTS, todo, REFERENCES, NEEDS)
