"""From what was typed to runs: run directories, and files of other tools read as runs."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from foreshock.errors import RunError, UsageError

if TYPE_CHECKING:
    from foreshock.run import Run

__all__ = ["FORMATS", "is_run", "open_run", "open_runs", "reading_options", "runs_under"]

FORMATS = ("wandb-csv", "wandb-json", "tensorboard", "transformers", "csv", "jsonl")
SEARCH_DEPTH = 3  # folders below the working directory in which runs are looked for, to suggest them
_Command = TypeVar("_Command", bound=Callable[..., Any])


def reading_options(command: _Command) -> _Command:
    """Adds the options that say how files of other tools are read."""
    column = click.option(
        "--column", "columns", multiple=True, metavar="SIGNAL=COLUMN", callback=_pairs,
        help="A signal's column in the file, e.g. loss=train/loss. Repeatable.",
    )
    form = click.option(
        "--format", "form", type=click.Choice(FORMATS), help="What the file is; guessed when not given."
    )
    return form(column(command))


def _pairs(ctx: click.Context, parameter: click.Parameter, values: Sequence[str]) -> dict[str, str]:
    result = {}
    for value in values:
        signal, equals, column = value.partition("=")
        if not (signal and equals and column):
            raise click.BadParameter(f"{value!r} is not SIGNAL=COLUMN, e.g. loss=train/loss", ctx, parameter)
        result[signal] = column
    return result


def open_runs(paths: Sequence[str], *, form: str | None = None, columns: dict[str, str] | None = None) -> list[Run]:
    """Returns one run for each path typed; errors as in `open_run`."""
    return [open_run(path, form=form, columns=columns) for path in paths]


def open_run(path: str, *, form: str | None = None, columns: dict[str, str] | None = None) -> Run:
    """Returns the run in a run directory, or what a file or folder of another tool holds as a run.

    Raises:
        RunError: nothing is there, or a folder that is no run; the message suggests runs nearby.
        ForeshockError: what the reader or the importer raises.
    """
    place = Path(path)
    if not place.exists():
        raise RunError(f"there is no {path!r}{_suggestion(place)}")
    if is_run(place):
        if form is not None or columns:
            raise UsageError(f"{path!r} is a run directory: --format and --column are for files of other tools")
        from foreshock.run import Run

        return Run.load(place)
    inside = [str(found) for found in runs_under(place)] if place.is_dir() and form is None else []
    if inside:
        raise RunError(f"{path!r} is no run, but a folder that holds some: {_listing(inside)}")
    from foreshock.run.importers import import_run

    return import_run(place, format=form, columns=columns or None)


def is_run(place: Path) -> bool:
    """Returns whether a run directory is there (one that has lost its run.json counts by its records)."""
    return (place / "run.json").is_file() or any(place.glob("rank-*/*.bin"))


def runs_under(root: Path, *, depth: int = SEARCH_DEPTH) -> list[Path]:
    """Returns the run directories below a folder, nearest first, hidden folders left out."""
    found: list[Path] = []
    level = [root]
    for _ in range(depth + 1):
        following: list[Path] = []
        for folder in level:
            if folder != root and is_run(folder):
                found.append(folder)
                continue
            following += _folders(folder)
        level = following
    return found


def _folders(folder: Path) -> Iterable[Path]:
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_dir() and not entry.name.startswith("."))
    except OSError:
        return []
    return [folder / name for name in names]


def _suggestion(place: Path) -> str:
    """Returns the end of a message: the run that was probably meant, else those that exist, else how to make one."""
    known = [os.path.relpath(run) for run in runs_under(Path.cwd())]
    beside = place.parent
    if beside.is_dir():
        known += [str(run) for run in runs_under(beside, depth=1) if os.path.relpath(run) not in known]
    by_name = {os.path.basename(run): run for run in reversed(known)}
    near = difflib.get_close_matches(str(place), known, n=3)
    near += [by_name[name] for name in difflib.get_close_matches(place.name, by_name, n=3) if by_name[name] not in near]
    if near:
        return f"; did you mean {_listing(near[:3], ' or ')}?"
    if known:
        return f"; the runs here are {_listing(known)}"
    return "; `foreshock run SCRIPT` or `Monitor(model, optimizer, run=...)` makes a run"


def _listing(names: Sequence[str], joint: str = ", ", limit: int = 5) -> str:
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return joint.join(names[:limit]) + more
