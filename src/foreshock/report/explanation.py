"""All that is known about one event, put together for people and programs: what `foreshock explain` prints."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from foreshock.diagnose.wording import percent
from foreshock.report.detail import harmful
from foreshock.report.explained import Explained, explained
from foreshock.report.phrase import plain
from foreshock.report.refused import Fate, fates
from foreshock.report.summary import MANY, baseline, peak_values
from foreshock.report.wording import number
from foreshock.run import Run
from foreshock.run.event import Event

ARROW = "\N{RIGHTWARDS ARROW}"


@dataclass(frozen=True, slots=True)
class Explanation:
    """One event and all that is known about it.

    Attributes:
        event: the event.
        place: its number among the harmful events, from 1; None for a warning.
        places: how many those are.
        value: of its signal at the peak; NaN where it was not recorded.
        base: level of the signal before it.
        fate: what a guard did about it; None where nothing.
        known: its diagnosis, stories, proof, blame and remedy.
        findings: findings of the run about it.
    """

    event: Event
    place: int | None
    places: int
    value: float
    base: float
    fate: Fate | None
    known: Explained
    findings: tuple[dict[str, Any], ...]

    @property
    def title(self) -> str:
        """The event in a few words."""
        which = "" if self.place is None else f"harmful event {self.place} of {self.places}: "
        return f"{which}{self.event.kind} at step {self.event.peak:,}"

    @property
    def facts(self) -> str:
        """How high and long it was, in a line."""
        event = self.event
        height = event.signal
        if event.kind != "nonfinite" and self.value == self.value:
            height = f"{event.signal} {number(self.base)} {ARROW} {number(self.value)}"
        last = "still open" if event.end is None else f"to {event.end:,}"
        said = [height, f"steps {event.onset:,} {last}", f"raised at step {event.raised:,}"]
        if event.severity == event.severity and event.severity != float("inf"):
            sigmas = number(event.severity) if event.severity <= MANY else f"more than {MANY:,}"
            said.append(f"{sigmas} robust sigmas")
        return "; ".join(said + ([self.fate.sentence] if self.fate is not None else []))

    @property
    def mechanism(self) -> str:
        """Which mechanism made it, and how sure that is, in a sentence."""
        found = self.known.diagnosis
        if found is None:
            return f"No cause is asked for: {self.event.kind} is a warning of a free signal."
        best = found.best
        others = [f"{each.title} ({percent(each.score)})" for each in found.causes[1:] if each.name != "unexplained"]
        may = f"; it may also have been {' or '.join(others)}" if others else ""
        if best.name == "unexplained":
            most = f"; the likeliest is {others[0]}" if others else ""
            judged = len(found.ruled_out) + len(found.causes) - 1
            known = {0: "no cause could be judged", 1: "the one cause that could be judged is not likely"}
            return f"Unexplained: {known.get(judged, f'none of {judged} causes that could be judged is likely')}{most}."
        sure = ", and a replay proves it" if self.known.remedy is not None and self.known.remedy.proved else ""
        return f"Made by {best.title}: {percent(best.score)}{sure}{may}."

    @property
    def story(self) -> str:
        """How it came about, in a few sentences; empty where neither the edge nor the softmax made it."""
        return plain(self.known.story or ())

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, for JSON; findings as they are kept with the run, the newest of each kind."""
        found, todo = self.known.diagnosis, self.known.remedy
        newest = {each["kind"]: each for each in self.findings}
        told = {} if found is None else {k: v for k, v in found.to_dict().items() if k != "event"}
        return {
            "event": self.event.to_dict() | {"number": self.place, "value": self.value, "baseline": self.base},
            "fate": None if self.fate is None else asdict(self.fate),
            "mechanism": None if found is None else {
                "name": found.best.name, "title": found.best.title, "score": round(found.best.score, 3),
            },
            "said": self.mechanism,
            "story": self.story,
            **told,
            "replay": newest.get("replay"),
            "attribution": newest.get("attribution"),
            "remedy": None if todo is None else asdict(todo),
        }  # fmt: skip


def explanation(run: Run, event: Event, events: Sequence[Event]) -> Explanation:
    """Returns all that is known about an event.

    Args:
        run: the run.
        event: one of its events.
        events: all of them, e.g. from `foreshock.detect.scan(run)`.
    """
    harm = [each.key for each in harmful(events)]
    value = peak_values(run, [event])[0]
    return Explanation(
        event, harm.index(event.key) + 1 if event.key in harm else None, len(harm), value, baseline(event, value),
        fates(run, [event]).get(event.key), explained(run, event), tuple(run.findings_of(event)),
    )  # fmt: skip



