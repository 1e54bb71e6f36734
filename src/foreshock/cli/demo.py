"""`foreshock demo`: three trainings, watched; a table and one page."""

from __future__ import annotations

from collections import Counter
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID
    from rich.table import Table

    from foreshock.demo.runner import Outcome

__all__ = ["demo"]


@click.command(short_help="Train three small networks, watch them, find their spikes, write a page.")
@click.option("--seed", default=0, show_default=True, help="Seed of all three trainings.")
@click.option(
    "-o", "--output", default="demo-report.html", show_default=True,
    type=click.Path(dir_okay=False, path_type=Path), help="The page to write.",
)
@click.option(
    "--runs", "directory", default="runs/demo", show_default=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Where the run directories go; an older demo there is replaced.",
)
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
def demo(seed: int, output: Path, directory: Path, show: bool) -> None:
    """Trains three small networks on real data, each of which spikes for a different reason, and shows what a watched
    run tells about it.

    \b
    absorption       200 digits in float32: the softmax rounds gradients away
    bad-batch        one corrupted batch among sound ones
    preconditioner   Adam's second moment decays until its steps are too long

    Takes about a minute on two cores, needs no network, and leaves ordinary run directories behind: go on with
    `foreshock scan runs/demo/absorption` or `foreshock info runs/demo/bad-batch`.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

    from foreshock.cli import console
    from foreshock.demo import SCENARIOS
    from foreshock.demo.runner import make_room, watch
    from foreshock.report import write

    places = {scenario.name: directory / scenario.name for scenario in SCENARIOS}
    for place in places.values():
        make_room(place)
    outcomes = []
    columns = (
        TextColumn("{task.description:<24}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[now]}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console.stderr()) as progress:
        for scenario in SCENARIOS:
            live = partial(_show, progress, progress.add_task(scenario.title, total=None, now=""))
            outcomes.append(watch(scenario, seed, places[scenario.name], live))
    click.echo()
    console.print_table(_table(outcomes))
    click.echo()
    for outcome in outcomes:
        click.echo(f"{click.style(outcome.scenario.title, bold=True)}: {outcome.scenario.look}")
    page = write(
        [outcome.run for outcome in outcomes], output, events=[outcome.events for outcome in outcomes],
        title="Three trainings, three kinds of spike",
    )
    click.echo(f"\npage: {page} ({page.stat().st_size / 1e6:.1f} MB)\nruns: {', '.join(map(str, places.values()))}")
    if show:
        click.launch(str(page))


def _show(progress: Progress, task: TaskID, step: int, steps: int, loss: float, events: int) -> None:
    found = f"{events} event{'' if events == 1 else 's'}"
    progress.update(task, completed=step, total=steps, now=f"loss {loss:<9.3g}  {found:<9}")


def _table(outcomes: list[Outcome]) -> Table:
    from foreshock.cli import console
    from foreshock.report.summary import baseline, peak_values
    from foreshock.report.wording import number

    rows = console.table(
        "training", "steps", "seconds", "spikes", "peaks at", "steepest", "other events",
        numbers=("steps", "seconds", "spikes"),
    )
    rows.columns[0].no_wrap = rows.columns[5].no_wrap = True
    for outcome in outcomes:
        spikes = [event for event in outcome.events if event.kind == "spike"]
        others = Counter(event.kind for event in outcome.events if event.kind != "spike")
        largest = "-"
        if spikes:
            rises = [(baseline(event, value), value) for event, value in
                     zip(spikes, peak_values(outcome.run, spikes), strict=True)]
            before, peak = max(rises, key=lambda rise: rise[1] / max(rise[0], 1e-12))
            largest = f"{number(before)} to {number(peak)}"
        rows.add_row(
            outcome.scenario.title, f"{len(outcome.run):,}", f"{outcome.seconds:.1f}", str(len(spikes)),
            " ".join(str(event.peak) for event in spikes) or "-", largest,
            ", ".join(f"{count} {kind}" for kind, count in others.items()) or "-",
        )
    return rows
