"""The studies that a reproduction is made of: run for each seed, found numbers judged, everything gathered."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Mapping, MutableMapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from foreshock.errors import MissingExtraError, UsageError
from foreshock.papers.claims import Claim
from foreshock.papers.experiment import Outcome, Progress, Request
from foreshock.run import Run
from foreshock.threads import one_thread

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Found", "Live", "Shelf", "Statement", "Studied", "Study", "judge", "seeds_of", "silent", "study"]

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


@dataclass(frozen=True, slots=True)
class Study:
    """A part of a reproduction.

    Attributes:
        title: what it is.
        run: of (seed, live, steps or 0, shelf).
        seconds: on one core.
        steps: below which its numbers decide nothing: its own number of them; 0 where that is not free.
        seeded: whether it is for every seed; else for the first alone.
    """

    title: str
    run: Callable[[int, Live, int, Shelf], Found]
    seconds: float
    steps: int = 0
    seeded: bool = True


@dataclass(frozen=True, slots=True)
class Studied:
    """What the studies of all seeds found.

    Attributes:
        found: seed -> name of a study -> what it found.
        missing: name of a study -> why its data are not there.
        left_out: names of studies that were not asked for.
    """

    found: Mapping[int, Mapping[str, Found]]
    missing: Mapping[str, MissingExtraError]
    left_out: Sequence[str]

    @property
    def all(self) -> list[Found]:
        """Returns what was found, in order."""
        return [each for studies in self.found.values() for each in studies.values()]

    def outcome(
        self, statements: Sequence[Statement], columns: tuple[str, ...], figures: Callable[[], Mapping[str, Figure]],
        *, remarks: Sequence[str] = (), rows: list[tuple[str, ...]] | None = None,
    ) -> Outcome:
        """Returns everything judged and gathered; what was not trained, and why, is added to the remarks."""
        said = list(dict.fromkeys(remark for each in self.all for remark in each.remarks))
        if self.missing:
            why = next(iter(self.missing.values()))
            said.append(f"left out, for want of their data: {', '.join(self.missing)}. {why}")
        if self.left_out:
            said.append(f"not trained: {', '.join(self.left_out)}")
        return Outcome(
            claims=judge(statements, {seed: list(studies.values()) for seed, studies in self.found.items()}),
            columns=columns,
            rows=[row for each in self.all for row in each.rows] if rows is None else rows,
            runs={place: run for each in self.all for place, run in each.runs.items()},
            remarks=[*remarks, *said], figures=figures,
        )


def seeds_of(request: Request, least: int) -> tuple[int, ...]:
    """Returns the seeds that are asked for, each once. Errors: UsageError for none, or fewer steps than `least`."""
    if not request.seeds or (request.steps is not None and request.steps < least):
        raise UsageError(
            f"at least one seed and {least} steps are needed; given seeds={request.seeds}, steps={request.steps}"
        )
    return tuple(dict.fromkeys(request.seeds))


def study(
    studies: Mapping[str, Study], names: Collection[str], seeds: Sequence[int], steps: int, progress: Progress
) -> Studied:
    """Runs studies in one thread, seed by seed; those whose data are not installed are left out.

    Args:
        studies: all that there are.
        names: those that are asked for.
        seeds: in order.
        steps: of each, 0 for its own number.
        progress: is told the share of all work that is done.

    Raises:
        MissingExtraError: the data of none of them are installed.
    """
    plan = [(seed, name) for seed in seeds for name in names if seed == seeds[0] or studies[name].seeded]
    total, done = sum(studies[name].seconds for _, name in plan), 0.0
    found: dict[int, dict[str, Found]] = {seed: {} for seed in seeds}
    shelves: dict[int, dict[str, Any]] = {seed: {} for seed in seeds}
    missing: dict[str, MissingExtraError] = {}
    with one_thread():
        for seed, name in plan:
            weight = studies[name].seconds

            def live(share: float, text: str, before: float = done, weight: float = weight) -> None:
                progress((before + share * weight) / total, text)

            try:
                found[seed][name] = studies[name].run(seed, live, steps, shelves[seed])
            except MissingExtraError as error:
                missing[name] = error
            done += weight
    if missing and len(missing) == len(names):
        raise next(iter(missing.values()))
    progress(1.0, "")
    return Studied(found, missing, [name for name in studies if name not in names])


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
