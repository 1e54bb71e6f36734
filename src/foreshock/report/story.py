"""An event of the curvature family in words: who made the step too long, when, how long before, what would help."""

from __future__ import annotations

import math
from collections.abc import Sequence

from foreshock.detect.second_moment import optimizer
from foreshock.diagnose import Advice, Approach
from foreshock.diagnose.wording import percent
from foreshock.report.phrase import Phrase
from foreshock.report.wording import count, number
from foreshock.run import Run
from foreshock.run.event import Event

AT_LEAST, AT_MOST = "\N{GREATER-THAN OR EQUAL TO}", "\N{LESS-THAN OR EQUAL TO}"
SIGNS = {"eps": AT_LEAST, "floor": AT_LEAST, "eps_crit": AT_LEAST, "lr": AT_MOST, "beta2": AT_MOST}


LEAST = 0.005  # shares below are not worth a word


def story(run: Run, event: Event, how: Approach, held: Advice | None) -> list[Phrase]:
    """Returns what happened, in a sentence or three.

    Args:
        run: the run.
        event: the event.
        how: its approach.
        held: what would have held it; None where nothing is known.
    """
    if how.verdict == "unexplained":
        return [
            Phrase("Not made by curvature: "), Phrase(_low(how), "figure"),
            Phrase(". Look at the data, the noise and the precision."),
        ]  # fmt: skip
    said = [*_cause(run, how), *_passing(event, how)]
    if how.tensor is not None and math.isfinite(how.tensor_share):
        share = f" ({percent(how.tensor_share)}). "
        said += [Phrase("The unstable direction lay in "), Phrase(how.tensor, "name"), Phrase(share)]
    best = None if held is None else held.best
    if best is not None and best.value is not None:
        verb = "from then on would have held it" if how.marks.turn is not None else "would hold it"
        said += [Phrase(best.knob, "name"), Phrase(f" {SIGNS[best.knob]} "), Phrase(number(best.value, 2), "figure")]
        said.append(Phrase(f" {verb}."))
    return said


def line(how: Approach) -> str:
    """Returns verdict and lead in one line of text, for tables and terminals."""
    marks = how.marks
    if how.verdict == "unexplained":
        return f"unexplained by curvature: {_low(how)}"
    told = [f"{name} {percent(share)}" for name, share in _largest(how)]
    if how.verdict in how.shares:
        parts = [told[0] + (f" ({', '.join(told[1:])})" if told[1:] else "")]
    else:
        parts = [f"{how.verdict} ({', '.join(told)})" if told else "curvature, not split"]
    if how.tensor is not None and math.isfinite(how.tensor_share):
        parts.append(f"edge in {how.tensor}")
    ahead = _ahead(how)
    parts.append(f"chi passed 1 at step {marks.crossing:,}" + (f", {ahead}" if ahead else ", the loss has not risen"))
    return "; ".join(parts)


def _low(how: Approach) -> str:
    most = number(how.chi_max)
    if how.chi_max < 1:
        return f"chi stayed at {most} or below, and the edge is at 1"
    return f"chi was above 1 ({most}) for a moment only, with the loss and not before it"


def _cause(run: Run, how: Approach) -> list[Phrase]:
    """Returns who made the step too long."""
    name = optimizer(run)
    owner = f"{name}'s second moment" if name else "The second moment"
    free = next((stage for stage in how.stages.bounds if stage.name == "decoupled"), None)
    decayed = owner + (" decayed" if free is None else " decayed freely")
    lasted = [] if free is None else [Phrase(" for "), Phrase(count(free.last - free.first + 1, "step"), "figure")]
    until = Phrase(" until the step was too long: ")
    if how.verdict == "preconditioner":
        return [Phrase(decayed), *lasted, until]
    if how.verdict == "landscape":
        return [Phrase("The landscape sharpened until the step was too long: ")]
    if how.verdict == "learning rate":
        return [Phrase("The learning rate rose until the step was too long: ")]
    if how.verdict == "mixed":
        said = {
            "preconditioner": decayed[0].lower() + decayed[1:] if not name else decayed,
            "landscape": "the landscape sharpened", "learning rate": "the learning rate rose",
        }  # fmt: skip
        shared = [f"{said[part]} ({percent(share)})" for part, share in _largest(how) if share > 0.05]
        text = " and ".join(shared) or "several things changed"
        return [Phrase(text[0].upper() + text[1:]), until]
    return [Phrase("The step became too long for the curvature: ")]


def _passing(event: Event, how: Approach) -> list[Phrase]:
    """Returns when chi passed 1, and what followed."""
    marks = how.marks
    said = [Phrase("chi passed 1 at step "), Phrase(f"{marks.crossing:,}", "figure")]
    ahead = _ahead(how)
    if ahead:
        return [*said, Phrase(f", {ahead}. ")]
    if marks.down is not None:
        return [*said, Phrase(f", and fell back below it at step {marks.down:,}; the loss did not rise. ")]
    said.append(Phrase(f" and stands at {number(how.chi_max)}; "))
    expected, soon = event.data.get("expected"), event.data.get("expected_in")
    if isinstance(soon, (int, float)) and isinstance(expected, (int, float)) and math.isfinite(soon):
        foretold = f"{number(expected, 2)} times, 1.5 times by step {event.raised + round(soon):,}"
        said.append(Phrase("the loss still falls, and is foretold to rise "))
        return [*said, Phrase(foretold, "figure"), Phrase(". ")]
    if marks.along is not None:
        return [*said, Phrase("the gradient has turned into the unstable direction, the loss is about to rise. ")]
    return [*said, Phrase("the loss still falls. ")]


def _ahead(how: Approach) -> str:
    """Returns by how much chi was ahead of the loss, empty where that did not rise."""
    if how.lead_turn is None:
        return ""
    turn = f"{count(how.lead_turn, 'step')} before the loss turned" if how.lead_turn > 0 else "as the loss turned"
    if how.lead_rise is not None and how.lead_rise > 0:
        return f"{turn} and {how.lead_rise:,} before it had risen 1.5 times"
    return turn if how.lead_peak is None or how.lead_peak <= 0 else f"{turn} and {how.lead_peak:,} before its peak"


def _largest(how: Approach) -> Sequence[tuple[str, float]]:
    told = [(name, share) for name, share in how.shares.items() if abs(share) >= LEAST]
    return sorted(told, key=lambda pair: -pair[1])
