"""What the commands print with: tables on standard output, progress and remarks on standard error."""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

    from foreshock.run import Event, Run, StepRecord

__all__ = [
    "busy", "counted", "event_table", "plain_json", "print_table", "stderr", "stdout", "table",
    "verdict_line",
]

LONG = 20_000  # records whose scan takes about a second: from there on a bar is shown
REDRAW = 1000
KIND_STYLE = {"spike": "yellow", "divergence": "red", "nonfinite": "red", "drift": "magenta"}


def stdout() -> Console:
    """Returns a console on standard output; tables are not squeezed into 80 columns when it is a pipe."""
    return _console(sys.stdout)


def stderr() -> Console:
    """Returns a console on standard error, for progress and remarks."""
    return _console(sys.stderr)


def _console(stream: Any) -> Console:
    from rich.console import Console

    class Quiet(Console):
        def on_broken_pipe(self) -> None:  # rich would exit with 1, which means "found something" to `scan`
            raise BrokenPipeError

    width = None if stream.isatty() else max(120, shutil.get_terminal_size().columns)
    return Quiet(file=stream, width=width, highlight=False, soft_wrap=False)


@contextmanager
def busy(what: str) -> Iterator[None]:
    """Shows that something is being done, on a terminal only."""
    console = stderr()
    if not console.is_terminal:
        yield
        return
    with console.status(what):
        yield


def counted(run: Run, what: str) -> Iterator[StepRecord]:
    """Yields the records of a run, with a progress bar on a terminal when they are many."""
    console = stderr()
    if not console.is_terminal or len(run) < LONG:
        yield from run.records()
        return
    from rich.progress import Progress

    with Progress(console=console, transient=True) as progress:
        task = progress.add_task(what, total=len(run))
        for place, record in enumerate(run.records()):
            if place % REDRAW == 0:
                progress.update(task, completed=place)
            yield record


def table(*columns: str, numbers: Sequence[str] = ()) -> Table:
    """Returns an empty table; the columns in `numbers` are set flush right."""
    from rich import box
    from rich.table import Table

    result = Table(box=box.SIMPLE_HEAD, pad_edge=False, show_edge=False)
    for column in columns:
        result.add_column(column, justify="right" if column in numbers else "left", overflow="fold")
    return result


def print_table(rows: Table) -> None:
    """Prints a table on standard output."""
    stdout().print(rows)


def event_table(run: Run, events: Sequence[Event], numbers: Mapping[Any, int]) -> Table:
    """Returns the events of a run as a table, one row each.

    Args:
        run: the run.
        events: those to show.
        numbers: key -> number by which `foreshock explain --event` knows a harmful event.
    """
    from foreshock.report.refused import fates
    from foreshock.report.summary import baseline, peak_values
    from foreshock.report.wording import number

    lost = fates(run, events)
    result = table(
        "kind", "#", "signal", "onset", "peak", "end", "value", "before", "severity", *(["training"] if lost else []),
        numbers=("#", "onset", "peak", "end", "value", "before", "severity"),
    )
    for event, value in zip(events, peak_values(run, events), strict=True):
        style = KIND_STYLE.get(event.kind, "cyan")
        result.add_row(
            f"[{style}]{event.kind}[/]", str(numbers.get(event.key, "")), event.signal, str(event.onset),
            str(event.peak), "open" if event.end is None else str(event.end),
            number(value), number(baseline(event, value)), number(event.severity),
            *([lost[event.key].short if event.key in lost else "taken"] if lost else []),
        )
    return result


def verdict_line(run: Run, events: Sequence[Event]) -> str:
    """Returns what happened in a run as one line of plain text."""
    from foreshock.report.explained import explained
    from foreshock.report.phrase import plain
    from foreshock.report.summary import verdict, worst

    found = worst(run, events)
    return plain(verdict(run, events, found, None if found is None else explained(run, found.span.event)))


def plain_json(value: Any) -> Any:
    """Returns plain values for JSON, which has no NaN and no infinity: they become "nan", "inf" and "-inf"."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {str(key): plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    return value
