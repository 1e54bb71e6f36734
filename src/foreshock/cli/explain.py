"""`foreshock explain`: why one event happened, what proves it, who did it, what to change."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from foreshock.cli.reading import open_run, reading_options

if TYPE_CHECKING:
    from foreshock.run import Event, Run

__all__ = ["explain"]


@click.command(short_help="Say why an event happened, what proves it, who did it, and what to change.")
@click.argument("path", metavar="RUN", type=click.Path())
@click.option(
    "--event", "number", type=int, metavar="N", help="The N-th harmful event, as `foreshock scan` numbers them from 1."
)
@click.option(
    "--step", type=int, metavar="S", help="The event at step S, be it a warning; else the harmful one nearest to it."
)
@click.option("--json", "as_json", is_flag=True, help="All of it as one JSON object.")
@click.option(
    "-o", "--output", type=click.Path(dir_okay=False, path_type=Path),
    help="Write the page about the run too, and say where on it the event is.",
)
@reading_options
def explain(
    path: str,
    number: int | None,
    step: int | None,
    as_json: bool,
    output: Path | None,
    form: str | None,
    columns: dict[str, str],
) -> None:
    """Explains one event of a run; the most severe where none is named.

    It says which mechanism made the event and how sure that is, with the numbers it rests on and what would
    contradict it; what was ruled out, and what could not be judged. Where the training was replayed
    (foreshock.replay) it shows what each single change did to the event, where it was attributed
    (foreshock.attribute) the guilty tensors and examples. Last comes what to change.

    RUN is a run directory or a file of another tool, as for `foreshock scan`.

    \b
    Exit code: 0 explained, or nothing to explain; 2 an error, such as an event that is not there.
    JSON has no NaN or infinity: such numbers are the strings "nan", "inf" and "-inf".

    \b
    foreshock explain runs/train
    foreshock explain runs/train --event 2 -o train.html
    foreshock explain trainer_state.json --step 1200 --json | jq .remedy
    """
    import json

    from foreshock.cli import console, explaining
    from foreshock.detect import scan
    from foreshock.errors import UsageError
    from foreshock.report.explanation import explanation

    if number is not None and step is not None:
        raise UsageError("--event and --step both name an event; give one of them")
    run = open_run(path, form=form, columns=columns)
    events = scan(console.counted(run, f"scanning {path}"))
    event = _chosen(run, events, number, step)
    written = None if output is None else _page(run, events, event, output)  # first: a pipe may be closed meanwhile
    if event is None:
        nothing = explaining.nothing(run, events)
        click.echo(json.dumps({"run": path, "event": None, "said": nothing}) if as_json else f"{path}: {nothing}")
    else:
        found = explanation(run, event, events)
        if as_json:
            row = {"run": path} | found.to_dict()
            click.echo(json.dumps(console.plain_json(row), allow_nan=False))
        else:
            explaining.show(path, found, console.stdout())
    if written is not None:
        click.echo(written, err=as_json)


def _chosen(run: Run, events: Sequence[Event], number: int | None, step: int | None) -> Event | None:
    """Returns the event that was asked for; None where there is none at all.

    Raises:
        UsageError: there are some, but not that one.
    """
    from foreshock.errors import UsageError
    from foreshock.report.detail import harmful
    from foreshock.report.refused import spared
    from foreshock.report.summary import by_severity
    from foreshock.run.event import BENIGN

    harm = harmful(events)
    if step is not None:  # a warning only where the step lies in it, or where there is no harm
        alarms = [event for event in events if event.kind not in BENIGN]
        here = [event for event in (*harm, *alarms) if not _distance(event, step)]
        return min(here[:1] or harm or alarms, key=lambda event: _distance(event, step), default=None)
    if not harm:
        return None
    if number is None:
        return by_severity(harm, spared(run, events))[0]
    if not 1 <= number <= len(harm):
        known = "; ".join(f"{place} {event.kind} at step {event.peak:,}" for place, event in enumerate(harm[:12], 1))
        more = f"; ... {len(harm)} in all" if len(harm) > 12 else ""
        raise UsageError(f"--event {number}: there is no such event; there are: {known}{more}")
    return harm[number - 1]


def _distance(event: Event, step: int) -> int:
    """Returns how many steps lie between an event and a step; 0 within it."""
    if step < event.onset:
        return event.onset - step
    return 0 if event.end is None else max(0, step - event.end)


def _page(run: Run, events: Sequence[Event], event: Event | None, output: Path) -> str:
    """Writes the page and returns where on it the event is."""
    from foreshock.cli import console
    from foreshock.errors import RunError
    from foreshock.report import write
    from foreshock.report.data import place_of

    with console.busy(f"writing {output}"):
        try:
            page = write(run, output, events=events, focus=event)
        except OSError as error:
            raise RunError(f"the page {str(output)!r} cannot be written: {error.strerror or error}") from error
    place = None if event is None else place_of(run, events, event)
    at = "" if place is None else f"; at the event: {page}#run-1/event-{place}"
    return f"page: {page} ({page.stat().st_size / 1e6:.1f} MB){at}"
