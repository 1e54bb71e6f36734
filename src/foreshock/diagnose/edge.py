"""What the causes that drive an optimizer over its edge of stability share: the approach, and how much it says.

`preconditioner`, `landscape` and `schedule` are the three parts of the growth of ln chi; the verdict is the approach's.
Where chi was not read close enough to the event, the signs of an edge say something, with less certainty.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from foreshock.detect.series import near, readings
from foreshock.diagnose.advice import Advice, advice
from foreshock.diagnose.approach import Approach, approach
from foreshock.diagnose.signs import Signs, signs
from foreshock.diagnose.wording import count, number, percent
from foreshock.run.event import Event, family
from foreshock.run.run import Run

KINDS = frozenset({"watch", "imminent", "transient", "spike", "divergence"})
NEEDS = ("chi",)
BETTER = ("chi_growth", "chi_share", "lr", "grad_cosine", "v_ratio", "chi_secant")
# How likely curvature made the event, by when chi passed 1: before the loss turned, with it, after it; or not at all.
BEFORE, WITH, RARE, AFTER, BELOW = 0.92, 0.7, 0.5, 0.25, 0.03
SLOW = 5  # steps from the crossing to a rise of 1.5 from which the crossing came first, wherever the loss turned
STALE = 100  # steps between readings on the way to the turn from which the split says nothing of what happened last
HALF = 0.5  # share of denominators and landscape each where the growth was not split
REFERENCES = ("Cohen et al. 2022, arXiv 2207.14484", "Bai et al. 2025, arXiv 2506.04805")
CONTRADICTS = (
    "chi below 1 at the last readings before the loss turns.",
    "The same event in a rerun from before it in which chi is held below 1, by the learning rate or a floor under the "
    "denominator.",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Driven:
    """An event held against the edge of stability.

    Attributes:
        how: the approach.
        strength: how likely curvature made the event, whoever drove it.
        passing: when chi passed 1, or how high it was, in a sentence.
        parts: the shares of ln chi's growth, in a sentence; empty where it was not split.
    """

    how: Approach
    strength: float
    passing: str
    parts: str

    def share(self, part: str) -> float:
        """Returns the share of "preconditioner", "landscape" or "learning rate" in the growth, 0 to 1."""
        shares = {name: max(0.0, value) for name, value in self.how.shares.items()}
        total = sum(shares.values())
        if total > 0:
            return shares.get(part, 0.0) / total
        known = {"preconditioner": HALF, "landscape": HALF} if self.how.marks.adam else {"landscape": 1.0}
        return known.get(part, 0.0)


@dataclass(frozen=True, slots=True)
class Verdict:
    """How likely curvature made an event, and whose doing it was: by chi where it was read, else by signs.

    Attributes:
        strength: 0 to 1, whoever drove it.
        shares: "preconditioner", "landscape" and "learning rate" -> part in it.
        said: in sentences, the most telling first.
        against: what speaks against it.
        found: the approach; None where chi was not read close enough.
        signals: what it was read from.
    """

    strength: float
    shares: Mapping[str, float]
    said: tuple[str, ...]
    against: tuple[str, ...]
    found: Driven | None
    signals: tuple[str, ...]

    def score(self, part: str) -> float:
        """Returns the score of one part."""
        return self.strength * self.shares.get(part, 0.0)


PARTS = ("preconditioner", "landscape", "learning rate")


def verdict(run: Run, event: Event) -> Verdict | None:
    """Returns how likely curvature made an event; None where nothing that was recorded tells.

    Args:
        run: the run, complete or so far.
        event: of one of `KINDS`, not of the softmax.
    """
    if not asked(event):
        return None
    found = driven(run, event)
    sure = found is not None and found.strength != RARE
    stale = found is not None and found.how.verdict != "unexplained" and _stale(run, found.how)
    marks = None if (sure and not stale) or event.kind not in ("spike", "divergence") else signs(run, event)
    if found is None:
        return None if marks is None else _by_signs(marks)
    shares: Mapping[str, float] = {part: found.share(part) for part in PARTS}
    said = tuple(filter(None, (found.passing, found.parts)))
    if marks is None:
        return Verdict(found.strength, shares, said, (), found, NEEDS)
    strength = found.strength if sure else max(found.strength, marks.strength)
    if stale or not found.how.shares:
        shares, said = marks.shares, (found.passing,)
    return Verdict(strength, shares, (*said, *marks.said), marks.against, found, (*NEEDS, *marks.signals))


def _by_signs(marks: Signs) -> Verdict:
    said = marks.said or tuple(f"{each[:1].upper()}{each[1:]}" for each in marks.against)
    note = "chi was not read close enough to the event: this rests on signs of an edge alone."
    return Verdict(marks.strength, marks.shares, said or (note,), (*marks.against, note), None, marks.signals)


def _stale(run: Run, how: Approach) -> bool:
    """Returns whether nobody looked for long between the crossing and the turn."""
    marks = how.marks
    if marks.crossing is None or marks.turn is None or marks.turn - marks.crossing < STALE:
        return False
    steps = readings(run).within(marks.crossing, marks.turn).steps
    return bool(np.max(np.diff(np.append(steps, marks.turn)), initial=0) >= STALE)


def asked(event: Event) -> bool:
    """Returns whether an event can be of the curvature family."""
    return event.kind in KINDS and family(event) != "softmax"


def driven(run: Run, event: Event) -> Driven | None:
    """Returns an event held against the edge; None where chi was not read close to it.

    Args:
        run: the run, complete or so far.
        event: one that `asked` is true of.
    """
    if not asked(event) or not len(readings(run)):
        return None
    how = approach(run, event)
    if how is None:
        return None
    return Driven(how, _strength(event, how), _passing(how), _parts(how))


def held(run: Run, event: Event, found: Driven, *knobs: str) -> tuple[str, ...]:
    """Returns what would have held chi below 1 by these knobs, in sentences; none where it was not above."""
    known: Advice | None = advice(near(run, event), event, how=found.how)
    if known is None:
        return ()
    items = [item for item in known.items if item.knob in knobs and item.value is not None]
    signs = {"lr": "<=", "beta2": "<="}
    names = {"lr": "learning rate", "floor": "floor under sqrt(v)", "eps_crit": "eps, for good"}
    return tuple(
        f"{names.get(item.knob, item.knob)} {signs.get(item.knob, '>=')} {number(item.value, 2)}"
        + ("" if item.current is None else f" (was {number(item.current)})") + f": {item.text}."
        for item in items if item.value is not None
    )  # fmt: skip


def _strength(event: Event, how: Approach) -> float:
    if how.verdict == "unexplained":
        return BELOW
    if event.kind != "spike":
        return BEFORE  # chi above 1 is what the event is
    marks = how.marks
    if how.lead_turn is None or marks.crossing is None or marks.turn is None:
        return RARE
    if how.lead_turn > 0:
        return BEFORE
    if how.lead_turn == 0:
        return WITH
    rare = marks.below is not None and marks.below < marks.turn < marks.crossing - 1  # nobody looked in between
    slow = how.lead_rise is not None and how.lead_rise >= SLOW  # the loss had turned in its noise, and rose after
    return RARE if rare or slow else AFTER


def _passing(how: Approach) -> str:
    if how.verdict == "unexplained":
        return f"chi was {number(how.chi_max)} at most around the event; an optimizer goes over its edge at 1."
    said = f"chi passed 1 at step {how.marks.crossing:,} and reached {number(how.chi_max)}"
    lead = how.lead_turn
    if lead is None:
        return f"{said}; the loss has not turned."
    if lead > 0:
        return f"{said}, {count(lead, 'step')} before the loss turned."
    return f"{said}, as the loss turned." if lead == 0 else f"{said}, {count(-lead, 'step')} after the loss had turned."


def _parts(how: Approach) -> str:
    names = {"preconditioner": "the denominators", "landscape": "the landscape", "learning rate": "the learning rate"}
    known = sorted(how.shares.items(), key=lambda pair: -pair[1])
    if not known:
        return ""
    told = ", ".join(f"{percent(share)} from {names[name]}" for name, share in known)
    estimated = how.growth is not None and how.growth.estimated
    by = "estimated from effective steps" if estimated else "to first order"
    return f"The growth of ln chi up to there came {told} ({by})."
