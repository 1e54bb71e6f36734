"""What a diagnosis is: causes with scores and evidence, ranked; what was ruled out; what could not be judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

from foreshock.run.event import Event
from foreshock.run.run import Run

LIKELY = 0.5  # score of the best cause below which an event is unexplained
RULED_OUT = 0.15  # score below which a cause is ruled out
TITLES = {
    "softmax_absorption": "a softmax in low precision",
    "preconditioner": "the optimizer's second moment",
    "landscape": "a landscape that sharpened",
    "update_burst": "a step out of all proportion",
    "outlier_batch": "a batch that was off",
    "schedule": "the schedule",
    "cold_start": "parts of the network that were new",
    "nonfinite": "a value that is no number",
    "not_reproducible": "weights that no update moved",
    "unexplained": "none of the causes that could be judged",
}
"""Causes in a few words, by name."""


@dataclass(frozen=True, slots=True)
class Cause:
    """One mechanism, held against an event.

    Attributes:
        name: which one, e.g. "softmax_absorption".
        score: 0 to 1: how likely this mechanism made the event, as far as the run tells.
        evidence: sentences with the numbers it rests on; of a cause that is ruled out, those that rule it out.
        contradicts: what would speak against it, and where the run tells, what it tells.
        advice: what to change, in code where that can be said; the best first.
        references: where the mechanism was described.
        signals: names of the signals that the evidence was read from.
    """

    name: str
    score: float
    evidence: tuple[str, ...]
    contradicts: tuple[str, ...] = ()
    advice: tuple[str, ...] = ()
    references: tuple[str, ...] = ()
    signals: tuple[str, ...] = ()

    @property
    def title(self) -> str:
        """The cause in a few words."""
        return TITLES.get(self.name, self.name.replace("_", " "))


Judge = Callable[[Run, Event], Cause | None]


@dataclass(frozen=True, slots=True)
class Rule:
    """How one cause is judged.

    Attributes:
        name: of the cause.
        judge: (run, event) -> the cause with its score, be it small; None where the run does not tell.
        kinds: kinds of events that the cause can be asked of.
        needs: signals without which it cannot be judged.
        better: signals with which it can be judged better.
        explains: causes whose signs this one brings about itself, so that they lose what it gains.
    """

    name: str
    judge: Judge
    kinds: frozenset[str]
    needs: tuple[str, ...]
    better: tuple[str, ...] = ()
    explains: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Unjudged:
    """A cause that the run does not tell about.

    Attributes:
        cause: its name.
        why: in words.
        signals: what to record so that the next one can be judged.
    """

    cause: str
    why: str
    signals: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """Why an event happened.

    Attributes:
        event: the event.
        causes: those that are likely enough, the likeliest first; `unexplained` where no mechanism is.
        ruled_out: causes that were judged and did not make it, with the numbers that say so.
        unjudged: causes that the run does not tell about, and what to record next time.
        summary: one to three sentences.
    """

    event: Event
    causes: tuple[Cause, ...]
    ruled_out: tuple[Cause, ...]
    unjudged: tuple[Unjudged, ...]
    summary: str

    @property
    def best(self) -> Cause:
        """The likeliest cause; `unexplained` where none is likely."""
        return self.causes[0]

    def __getitem__(self, name: str) -> Cause:
        """Returns the cause of that name, be it ruled out.

        Errors: KeyError where it was not judged.
        """
        for cause in (*self.causes, *self.ruled_out):
            if cause.name == name:
                return cause
        judged = ", ".join(cause.name for cause in (*self.causes, *self.ruled_out))
        raise KeyError(f"no judgement of {name!r}; judged were: {judged}")

    def to_dict(self) -> dict[str, Any]:
        """Returns the diagnosis as plain values, for JSON; scores to three digits."""

        def plain(cause: Cause) -> dict[str, Any]:
            return asdict(cause) | {"score": round(cause.score, 3)}

        return {
            "event": self.event.to_dict(), "summary": self.summary,
            "causes": [plain(cause) for cause in self.causes],
            "ruled_out": [plain(cause) for cause in self.ruled_out],
            "unjudged": [asdict(each) for each in self.unjudged],
        }  # fmt: skip
