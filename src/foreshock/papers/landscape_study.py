"""What one study of the landscape-spike reproduction hands back: numbers for claims, runs, rows, things to draw."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from foreshock.papers.claims import Claim
from foreshock.run import Run

__all__ = ["Found", "Live", "Shelf", "Statement", "judge", "silent"]

Live = Callable[[float, str], None]
"""Called as (share that is done, what is going on)."""

Shelf = MutableMapping[str, Any]
"""Where studies of one seed leave trainings for each other."""


def silent(share: float, text: str) -> None:
    """Tells nobody."""


@dataclass(frozen=True, slots=True)
class Found:
    """What a study of one seed found.

    Attributes:
        numbers: name of a statement -> what was measured.
        runs: place -> run.
        rows: of the table of trainings.
        drawn: what only figures need.
        remarks: what a reader has to know.
    """

    numbers: Mapping[str, float]
    runs: Mapping[str, Run] = field(default_factory=dict)
    rows: Sequence[tuple[str, ...]] = ()
    drawn: Mapping[str, Any] = field(default_factory=dict)
    remarks: Sequence[str] = ()


@dataclass(frozen=True, slots=True)
class Statement:
    """A claim before it is measured: an interval for the number of that name.

    Attributes:
        name: of the number.
        text: what is claimed, ending in what the number is.
        low, high: the interval.
        source: whose claim, and where the interval comes from.
    """

    name: str
    text: str
    low: float = -math.inf
    high: float = math.inf
    source: str = ""


def judge(statements: Sequence[Statement], found: Mapping[int, Sequence[Found]]) -> list[Claim]:
    """Returns the claims that at least one seed can decide, each with the seeds that can.

    Args:
        statements: what is claimed.
        found: seed -> what its studies found.
    """
    claims = []
    for each in statements:
        measured = {
            seed: study.numbers[each.name] for seed, studies in found.items() for study in studies
            if each.name in study.numbers
        }
        if measured:
            claims.append(Claim(each.name, each.text, each.low, each.high, measured, each.source))
    return claims
