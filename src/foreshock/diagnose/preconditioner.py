"""The cause `preconditioner`: the second moment decayed until the step was too long for the curvature.

Source: Bai et al. 2025, arXiv 2506.04805.
"""

from __future__ import annotations

import math

from foreshock.detect.second_moment import has_second_moment
from foreshock.diagnose.approach import Approach
from foreshock.diagnose.base import RULED_OUT, Cause
from foreshock.diagnose.edge import CONTRADICTS, REFERENCES, held, verdict
from foreshock.diagnose.wording import count, percent
from foreshock.run.event import Event
from foreshock.run.run import Run

NAME = "preconditioner"
ADVICE = (
    "Put a floor under the denominator while it decays: `foreshock.Guard(monitor)` does so when it sees the edge come; "
    "or raise `eps` (1e-8 to 1e-4 and more, as the gradients are).",
    "A smaller `beta2` (0.95 to 0.99) from the start: v then follows the gradients, and spikes are lower.",
    'Read chi more often, so that the next one is judged with its numbers: `Monitor(..., max_overhead=0.2)`.',
)


def preconditioner(run: Run, event: Event) -> Cause | None:
    """Returns how likely the second moment drove the optimizer over its edge; None where chi was not read close by.

    Args:
        run: the run, complete or so far.
        event: of kind watch, imminent (of `chi_gradient`), transient, spike or divergence.
    """
    judged = verdict(run, event)
    if judged is None:
        return None
    found, score, said = judged.found, judged.score(NAME), list(judged.said)
    adam = has_second_moment(run) if found is None else found.how.marks.adam
    if found is not None:
        said += _told(found.how)
    if not adam:
        said, score = ["The optimizer has no second moment."], 0.0
    todo: tuple[str, ...] = ()
    if score >= RULED_OUT:
        todo = held(run, event, found, "eps", "floor", "beta2", "eps_crit") if found is not None else ADVICE
    against = tuple(f"Here: {each}" for each in judged.against) if adam else ()
    return Cause(NAME, score, tuple(said), (*against, *CONTRADICTS), todo, REFERENCES, judged.signals)


def _told(how: Approach) -> list[str]:
    """Returns what the second moment did before, and where the unstable direction lay."""
    said = []
    free = next((stage for stage in how.stages.bounds if stage.name == "decoupled"), None)
    if free is not None:
        said.append(
            f"Before, the second moment decayed freely at beta2 for {count(free.last - free.first + 1, 'step')}, from "
            f"step {free.first:,}: squared gradients fed it with less than a tenth."
        )
    if how.tensor is not None and math.isfinite(how.tensor_share):
        said.append(f"The unstable direction lay in `{how.tensor}` ({percent(how.tensor_share)}).")
    return said
