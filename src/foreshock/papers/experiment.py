"""What a reproduction is: trainings to run, claims to judge, figures to draw, and how all of it is written down."""

from __future__ import annotations

import difflib
import json
import math
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from foreshock.errors import RunError, UsageError
from foreshock.papers.claims import Claim
from foreshock.papers.drawing import save
from foreshock.run import Run

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["Experiment", "Outcome", "Progress", "Request", "check_room", "chosen", "write"]

CLAIMS = "claims.json"

Progress = Callable[[float, str], None]
"""Called as (share of all work that is done, what is going on)."""


@dataclass(frozen=True, slots=True)
class Request:
    """How a paper is to be reproduced.

    Attributes:
        seeds: each claim must hold for all of them.
        steps: optimizer steps of every training; None for each one's own number.
        only: names of trainings; empty for all.
        quick: a few trainings, shortened.
    """

    seeds: tuple[int, ...] = (0, 1)
    steps: int | None = None
    only: tuple[str, ...] = ()
    quick: bool = False


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of it.

    Attributes:
        claims: judged.
        columns, rows: a table of the trainings, as text.
        runs: place below the output directory -> run.
        remarks: sentences a reader must know, such as that trainings were shortened.
        figures: draws the figures, name -> figure; needs matplotlib.
    """

    claims: list[Claim]
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]]
    runs: Mapping[str, Run]
    remarks: list[str]
    figures: Callable[[], Mapping[str, Figure]]


@dataclass(frozen=True, slots=True)
class Experiment:
    """A paper that can be reproduced.

    Attributes:
        name: on the command line.
        title, source: of the paper.
        summary: what is trained and claimed, in a few sentences.
        trainings: name -> what it is, for --only.
        reproduce: trains and judges. Errors: UsageError for an unknown training, MissingExtraError without its data.
    """

    name: str
    title: str
    source: str
    summary: str
    trainings: Mapping[str, str]
    reproduce: Callable[[Request, Progress], Outcome]


def chosen(request: Request, known: Collection[str], quick: Collection[str]) -> list[str]:
    """Returns the names of the trainings that are asked for, in the order in which they are known.

    Raises:
        UsageError: a name that is not known.
    """
    for name in request.only:
        if name not in known:
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.3)
            meant = f"did you mean {near[0]!r}? " if near else ""
            raise UsageError(f"there is no training {name!r}; {meant}known: {', '.join(known)}")
    return [name for name in known if name in (request.only or (quick if request.quick else known))]


def write(
    experiment: Experiment, outcome: Outcome, directory: Path, *, formats: Sequence[str] = ("png", "pdf")
) -> list[Path]:
    """Writes run directories, `claims.json` and, for each of `formats`, the figures; returns what is new at the top.

    What an earlier reproduction of the same paper left under the same names is replaced.

    Raises:
        RunError: a run of something else is in the way; it is left alone.
        MissingExtraError: figures are wanted and matplotlib is not installed; everything else has been written.
    """
    for place in outcome.runs:
        _make_room(directory / place, experiment.name)
    claims = directory / CLAIMS
    directory.mkdir(parents=True, exist_ok=True)
    facts = {
        "paper": experiment.name, "source": experiment.source, "remarks": outcome.remarks,
        "claims": [claim.to_dict() for claim in outcome.claims],
        "trainings": [dict(zip(outcome.columns, row, strict=True)) for row in outcome.rows],
    }
    claims.write_text(json.dumps(_plain(facts), indent=2, allow_nan=False) + "\n", encoding="utf-8")
    for place, run in outcome.runs.items():
        run.save(directory / place)
    written = [claims]
    if formats:
        for name, figure in outcome.figures().items():
            for kind in formats:
                written.append(directory / f"{name}.{kind}")
                save(figure, written[-1])
    return written


def check_room(experiment: Experiment, directory: Path) -> None:
    """Looks whether a reproduction can be written to a folder, before time is spent on one.

    Raises:
        RunError: the folder holds something, and no `claims.json` of an earlier reproduction of this paper.
    """
    if not directory.exists() or not any(directory.iterdir()):
        return
    try:
        earlier = json.loads((directory / CLAIMS).read_text(encoding="utf-8"))["paper"]
    except (OSError, ValueError, LookupError, TypeError):
        earlier = None
    if earlier != experiment.name:
        raise RunError(
            f"{directory} is not empty and holds no earlier reproduction of {experiment.name}; name another folder "
            "with --out"
        )


def _make_room(place: Path, paper: str) -> None:
    if not place.exists():
        return
    try:
        earlier = Run.load(place).meta.get("paper")
    except RunError:
        earlier = None
    if earlier != paper:
        raise RunError(f"{place} exists and is not from an earlier reproduction; name another folder with --out")
    shutil.rmtree(place)


def _plain(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    return [_plain(inner) for inner in value] if isinstance(value, list | tuple) else value
