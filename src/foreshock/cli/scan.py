"""`foreshock scan`: what happened in a run, for people and for pipelines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

from foreshock.cli.reading import open_run, reading_options

if TYPE_CHECKING:
    from foreshock.run import Event, Run

__all__ = ["scan"]

FOUND = 1


def _known_kinds(ctx: click.Context, parameter: click.Parameter, values: tuple[str, ...]) -> tuple[str, ...]:
    from foreshock.run.event import KINDS  # here, so that --help does not wait for numpy

    for value in values:
        if value not in KINDS:
            raise click.BadParameter(f"{value!r} is none of {', '.join(KINDS)}", ctx, parameter)
    return values


@click.command(short_help="Find spikes, divergence and NaN in a run; exit 1 when there are any.")
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option("--json", "as_json", is_flag=True, help="One JSON object a run and line, instead of tables.")
@click.option(
    "--kind", "kinds", multiple=True, callback=_known_kinds, metavar="KIND",
    help="Only events of this kind (spike, watch, ...; a wrong one lists all) count and are shown. Repeatable.",
)
@reading_options
@click.pass_context
def scan(
    ctx: click.Context,
    paths: tuple[str, ...],
    as_json: bool,
    kinds: tuple[str, ...],
    form: str | None,
    columns: dict[str, str],
) -> None:
    """Finds the events of one run or several: spikes, divergence, drift, NaN, early warnings.

    RUN is a run directory or a file of another tool (W&B export, TensorBoard folder, trainer_state.json, CSV,
    JSONL). The detectors are the ones that watch a live run, fed with the stored records.

    The column # numbers the harmful events, for `foreshock explain --event`.

    An event that a guard refused is an event of the data: it counts, and is shown as refused.

    \b
    Exit code: 0 nothing found (or only transients, which are no alarm), 1 something found, 2 an error.
    JSON has no NaN or infinity: such numbers are the strings "nan", "inf" and "-inf".

    \b
    foreshock scan runs/train               (then: foreshock explain runs/train --event N)
    foreshock scan runs/* --kind spike --kind nonfinite
    foreshock scan history.csv --column loss=train/loss --json | jq '.events[].peak'
    """
    import json

    from foreshock.cli import console
    from foreshock.detect import scan as find
    from foreshock.report.detail import harmful
    from foreshock.report.explained import lines as explanations
    from foreshock.report.interventions import told
    from foreshock.run.event import BENIGN

    found = False
    for path in paths:
        run = open_run(path, form=form, columns=columns)
        found_here = find(console.counted(run, f"scanning {path}"))
        events = [event for event in found_here if not kinds or event.kind in kinds]
        found = found or any(event.kind not in BENIGN or event.kind in kinds for event in events)
        numbers = {event.key: place for place, event in enumerate(harmful(found_here), 1)}
        if as_json:
            row = {"run": path, "steps": len(run), "events": _as_dicts(run, events, numbers)}
            if acted := run.actions:
                row["actions"] = [action.to_dict() for action in acted]
            click.echo(json.dumps(console.plain_json(row), allow_nan=False))
            continue
        what = f"{len(events)} event{'s' if len(events) > 1 else ''}" if events else "nothing found"
        click.echo(f"{click.style(path, bold=True)}: {len(run):,} steps, {what}")
        if events:
            console.print_table(console.event_table(run, events, numbers))
            for line in explanations(run, events):
                click.echo(f"  {line}")
            click.echo()
        if acted := run.actions:
            click.echo(f"  guard: {told(acted)}\n")
    ctx.exit(FOUND if found else 0)


def _as_dicts(run: Run, events: Sequence[Event], numbers: Mapping[Any, int]) -> list[dict[str, Any]]:
    """Returns the events as plain values, the harmful ones with their numbers.

    Where a guard acted, with how many of their attempts it refused or undid.
    """
    from foreshock.report.refused import fates

    lost = fates(run, events)
    return [
        event.to_dict() | ({"number": numbers[event.key]} if event.key in numbers else {})
        | ({"refused": fate.refused + fate.undone, "attempts": fate.high} if fate else {})
        for event in events for fate in (lost.get(event.key),)
    ]  # fmt: skip
