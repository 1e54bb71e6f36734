"""What is known about one event beyond its own signals: its diagnosis, and the story of the mechanism that made it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

from foreshock.diagnose import Cause, Diagnosis, diagnose, slide
from foreshock.diagnose.base import LIKELY, TITLES
from foreshock.diagnose.wording import percent
from foreshock.report import approach, softmax
from foreshock.report.approach import Story
from foreshock.report.detail import HARM
from foreshock.report.experiments import Attributed, Replayed, attributed, replayed
from foreshock.report.phrase import Phrase, phrases
from foreshock.report.remedy import Remedy, remedy
from foreshock.report.softmax import Softmax
from foreshock.run import Run
from foreshock.run.event import Event, family

ASKED = frozenset({*HARM, "precursor", "watch", "imminent", "transient", "absorbing", "inflating"})
SHOWN = frozenset(HARM)  # their causes are listed; a warning's story is enough
TOLD = frozenset({"preconditioner", "landscape", "schedule", "softmax_absorption", "unexplained"})  # have a story
AGAIN = "Run again"  # how evidence from the replay begins, which is told after it


@dataclass(frozen=True, slots=True)
class Explained:
    """One event, explained as far as the run tells.

    Attributes:
        diagnosis: its causes; None where nobody asks for any.
        curvature: how the optimizer came over its edge; None where that is not what happened.
        softmax: how the softmax led up to it; likewise.
        proof: its replay, with one thing changed at a time; None where there was none.
        blame: who did it, tensors and examples; None where nobody has asked.
        remedy: what to change; None for warnings.
    """

    diagnosis: Diagnosis | None
    curvature: Story | None
    softmax: Softmax | None
    proof: Replayed | None = None
    blame: Attributed | None = None
    remedy: Remedy | None = None

    @property
    def sentence(self) -> Sequence[Phrase] | None:
        """How it came about in a few sentences, and what a replay has proved; None where nothing is known."""
        told = self.story if self.story is not None else self._made()
        proved = self._proved()
        if told is None:
            return proved or None
        return [*told, *([Phrase(" "), *proved] if proved else [])]

    def _made(self) -> Sequence[Phrase] | None:
        """Returns the likeliest cause with the first sign of it; None where none is likely."""
        best = self._other()
        if best is None:
            return None
        sign = next((said for said in best.evidence if not said.startswith(AGAIN)), "")
        because = [Phrase(": "), *phrases(sign[0].lower() + sign[1:])] if sign else [Phrase(".")]
        return [Phrase("Made by "), Phrase(best.title, "figure"), Phrase(f" ({percent(best.score)})"), *because]

    def _other(self) -> Cause | None:
        """Returns the likeliest cause where it is one that neither curvature nor softmax tells of."""
        best = None if self.diagnosis is None else self.diagnosis.best
        return best if best is not None and best.name not in TOLD and best.score >= LIKELY else None

    @property
    def story(self) -> Sequence[Phrase] | None:
        """The story of the softmax or of the edge; None where neither made the event."""
        if self.softmax is not None:
            return self.softmax.sentence
        story = self.curvature
        if self._other() is not None:
            return None
        if story is None or story.approach.verdict != "unexplained" or not self._exact:
            return None if story is None else story.sentence
        rest = Phrase(", nor by the softmax, whose gradients are exact enough. Look at the data and the noise.")
        return [*story.sentence[:-1], rest]

    def _proved(self) -> list[Phrase]:
        proof = self.proof
        if proof is None:
            return []
        if not proof.returns:
            return [Phrase("Replayed from the same state, it went "), Phrase("another way", "figure"), Phrase(".")]
        if not proof.cures:
            return []
        name = proof.cures[0] if self.remedy is None or not self.remedy.proved else self.remedy.change
        said = [Phrase("Replayed with "), Phrase(name, "name"), Phrase(" alone, ")]
        return [*said, Phrase("it does not come", "figure"), Phrase(".")]

    @property
    def _exact(self) -> bool:
        """Whether the softmax was read before the event and found innocent."""
        ruled_out = () if self.diagnosis is None else self.diagnosis.ruled_out
        return any(cause.name == "softmax_absorption" for cause in ruled_out)


def explained(run: Run, event: Event) -> Explained:
    """Returns what is known about an event.

    Where a softmax in low precision made it, chi went along and tells no story of its own.
    """
    proof, blame = replayed(run, event), attributed(run, event)
    if event.kind not in ASKED:
        return Explained(None, approach.told(run, event), None, proof, blame)
    found = diagnose(run, event)
    made = softmax.softmax(run, event, found)
    curvature = None if made is not None else approach.told(run, event)
    held = None if curvature is None else curvature.advice
    todo = remedy(run, event, found, held=held, proof=proof, blame=blame) if event.kind in SHOWN else None
    return Explained(found, curvature, made, proof, blame, todo)


def lines(run: Run, events: Sequence[Event], most: int = 20) -> list[str]:
    """Returns one line for each slide of the softmax, and one for each event of the curvature family beside them.

    Args:
        run: the run.
        events: its events.
        most: most lines of either kind.
    """
    if "softmax_absorbed" not in run:
        return approach.lines(run, events, most)
    told: dict[int, str] = {}
    others = []
    for event in sorted(events, key=lambda each: (each.kind not in HARM, -each.height)):  # a slide's largest tells it
        found = slide(run, event) if event.kind in ASKED and event.kind != "precursor" else None
        since = None if found is None else found.since
        if found is None or since is None or (since not in told and not _by_softmax(run, event)):
            others.append(event)
        elif since not in told and len(told) < most:
            told[since] = f"{event.kind} at step {event.peak:,}: {softmax.line(found)}"
    return [*(told[since] for since in sorted(told)), *approach.lines(run, others, most)]


def _by_softmax(run: Run, event: Event) -> bool:
    return diagnose(run, event).best.name == "softmax_absorption"


def to_json(found: Explained, event: Event) -> dict[str, object] | None:
    """Returns the causes as the page shows them; None where they say nothing, or were not asked for."""
    told = found.diagnosis
    if told is None or (event.kind not in SHOWN and family(event) != "softmax"):
        return None
    if told.best.name == "unexplained" and len(told.causes) == 1 and not told.ruled_out:
        return None
    unexplained = any(cause.name == "unexplained" for cause in told.causes)
    carded = found.curvature is not None and found.curvature.advice is not None  # what would have held it is shown
    left_out = {"signals", "advice"} if carded else {"signals"}
    causes = [
        {"title": cause.title, "advice": (), **{k: v for k, v in asdict(cause).items() if k not in left_out}}
        for cause in told.causes
    ]  # fmt: skip
    out = () if unexplained else told.ruled_out  # the evidence of `unexplained` is made of them
    return {
        "causes": causes,
        "ruled_out": [{"title": cause.title, "why": next(iter(cause.evidence), "")} for cause in out],
        "unjudged": [
            {"title": TITLES.get(each.cause, each.cause), "why": each.why, "signals": each.signals}
            for each in told.unjudged
        ],
    }
