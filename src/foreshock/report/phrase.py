"""Text made of pieces that are set differently."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Phrase:
    """A piece of a sentence; `style` is "", "figure" (a number that matters) or "name" (a signal or tensor)."""

    text: str
    style: str = ""


def plain(phrases: Sequence[Phrase]) -> str:
    """Returns the sentence as text."""
    return "".join(phrase.text for phrase in phrases).strip()


def phrases(text: str) -> list[Phrase]:
    """Returns text with `names in backticks` as phrases.

    >>> [(phrase.text, phrase.style) for phrase in phrases("See `fc.weight`.")]
    [('See ', ''), ('fc.weight', 'name'), ('.', '')]
    """
    parts = enumerate(text.split("`"))
    return [Phrase(part, "name" if place % 2 else "") for place, part in parts if part]
