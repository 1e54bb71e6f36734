"""Blocks of text the page shows beside an event: what is known, one idea each.

Whoever knows more about an event (causes, advice, a replay) hands the page a function `(run, event) -> sections`;
without one the page says what the free signals did.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from foreshock.report.departures import Departure, earliest, ranked
from foreshock.report.wording import count, listing, number
from foreshock.run.event import Event

Tone = Literal["note", "cause", "advice", "caution"]


@dataclass(frozen=True, slots=True)
class Section:
    """One block of plain text; the page escapes it and sets `names in backticks` in a fixed-width face.

    Attributes:
        title: a few words.
        text: a sentence or a short paragraph; may be empty.
        points: short lines, shown as a list.
        tone: what kind of block it is; decides its accent on the page.
    """

    title: str
    text: str = ""
    points: tuple[str, ...] = ()
    tone: Tone = "note"

    def plain(self) -> str:
        """Returns the block as text for a terminal."""
        lines = [f"{self.title}: {self.text}" if self.text else f"{self.title}:"]
        return "\n".join(lines + [f"  - {point}" for point in self.points]).replace("`", "")


def free_signals(event: Event, wide: Sequence[Departure], tensors: Sequence[Departure]) -> list[Section]:
    """Returns what the free signals say about an event, or one honest line where they say nothing.

    Args:
        event: the event.
        wide: departures of the run-wide signals.
        tensors: departures of the per-tensor signals.
    """
    others = [item for item in wide if item.column != event.signal]
    known = [item for item in (*others, *tensors) if item.score == item.score]
    if not known:
        return [Section("Signals", f"No other signal than {event.signal} was recorded long enough before this event.")]
    moved = ranked(known)
    if not moved:
        return [Section("Signals", "No other recorded signal left its range around this event.")]
    sections = []
    if event.kind != "precursor":
        first = earliest(known)
        if first is None:
            text = "No recorded signal clearly left its range before the onset: the event came without a warning."
        else:
            text = (
                f"`{first.column}` left its range {count(first.lead or 0, 'step')} before the onset, "
                f"at step {first.first or 0:,}."
            )
            same = [
                f"`{item.column}`" for item in known if item.moved and item.lead == first.lead and item is not first
            ]
            if same:
                also = listing(same[:3]) if len(same) <= 3 else f"{listing(same[:2], ', ')} and {len(same) - 2} others"
                text += f" With it: {also}."
        sections.append(Section("First sign", text))
    points = tuple(f"`{item.column}`: {_change(item)}" for item in _one_a_signal(moved)[:4])
    sections.append(Section("Moved most", points=points))
    return sections


def _one_a_signal(moved: Sequence[Departure]) -> list[Departure]:
    """Returns the first departure of each signal, so that one signal's many tensors do not hide the others."""
    firsts: dict[str, Departure] = {}
    for item in moved:
        firsts.setdefault(item.column.partition("/")[0], item)
    return list(firsts.values())


def _change(item: Departure) -> str:
    if not abs(item.extreme) < float("inf"):
        return f"from {number(item.before)} to {number(item.extreme)}"
    if item.before > 0 and item.extreme > 0 and not 0.5 < item.extreme / item.before < 2:
        ratio = item.extreme / item.before
        factor = f"{number(ratio)} times its level" if ratio > 1 else f"down to 1/{number(1 / ratio)} of its level"
        return f"{factor} ({number(item.before)} to {number(item.extreme)})"
    return f"from {number(item.before)} to {number(item.extreme)}"
