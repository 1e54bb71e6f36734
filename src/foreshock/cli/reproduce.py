"""`foreshock reproduce`: trains a paper's experiments, judges its claims, draws its figures."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from rich.table import Table

    from foreshock.papers.claims import Claim
    from foreshock.papers.experiment import Experiment, Outcome, Request

__all__ = ["reproduce"]

NOT_REPRODUCED = 1


@click.command(short_help="Train a paper's experiments here and check its claims; exit 1 if one fails.")
@click.argument("name", metavar="[PAPER]", required=False)
@click.option(
    "--seed", "seeds", multiple=True, type=click.IntRange(0, 2**32 - 1), default=(0, 1), show_default=True,
    help="Seed of the trainings. Repeatable; each claim must hold for all of them.",
)
@click.option("--steps", type=click.IntRange(min=2), help="Steps of every training, in place of its own number.")
@click.option("--only", multiple=True, metavar="TRAINING", help="Run this training; see --list. Repeatable.")
@click.option("--quick", is_flag=True, help="A few trainings, shortened.")
@click.option("--list", "listed", is_flag=True, help="List the paper's trainings.")
@click.option(
    "--out", "out", type=click.Path(file_okay=False, path_type=Path),
    help="Where runs, claims.json and figures go [default: runs/PAPER]; an older reproduction there is replaced.",
)
@click.option("--json", "as_json", is_flag=True, help="Print what goes into claims.json instead of tables.")
@click.pass_context
def reproduce(
    ctx: click.Context, /, name: str | None, out: Path | None, listed: bool, as_json: bool, **asked: object
) -> None:
    """Trains the experiments of a paper on this machine and says which of its claims hold here, and by how much not.

    Leaves behind one run directory for each training (go on with `foreshock report`), the claims as claims.json, and
    figures as PNG and PDF. Needs the extras: pip install 'foreshock[demo,figures]'. Without PAPER: the papers known.

    \b
    foreshock reproduce edge-of-stability                 two to four minutes on one core
    foreshock reproduce edge-of-stability --quick --seed 0
    foreshock reproduce edge-of-stability --only adam --only nadam --out runs/adams

    \b
    Exit code: 0 every claim reproduced, 1 one was not, 2 an error.
    """
    from foreshock.cli import console
    from foreshock.papers import PAPERS, paper

    if name is None:
        rows = console.table("paper", "about")
        for each, (_, about) in PAPERS.items():
            rows.add_row(f"[bold]{each}[/]", about)
        console.print_table(rows)
        return
    experiment = paper(name)
    if listed:
        rows = console.table("training", "what")
        for each, title in experiment.trainings.items():
            rows.add_row(f"[bold]{each}[/]", title)
        console.print_table(rows)
        return
    from foreshock.papers.experiment import Request, check_room

    directory = out if out is not None else Path("runs") / experiment.name
    check_room(experiment, directory)
    outcome = _train(experiment, Request(**asked))  # type: ignore[arg-type]
    written = _write(experiment, outcome, directory)
    if as_json:
        click.echo((directory / "claims.json").read_text(encoding="utf-8"), nl=False)
    else:
        console.print_table(_trainings(outcome))
        if outcome.claims:
            click.echo()
            console.print_table(_claims(outcome))
        for remark in outcome.remarks:
            click.echo(f"\n{click.style('note:', bold=True)} {remark}")
        held = sum(claim.reproduced for claim in outcome.claims)
        found = f"{held} of {len(outcome.claims)} claims reproduced" if outcome.claims else "no claim decided"
        click.echo(f"\n{found}.  {experiment.source}")
        click.echo(f"runs: {directory}\nfiles: {', '.join(str(path.name) for path in written)}")
    ctx.exit(0 if all(claim.reproduced for claim in outcome.claims) else NOT_REPRODUCED)


def _train(experiment: Experiment, request: Request) -> Outcome:
    from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

    from foreshock.cli import console

    columns = (BarColumn(), TaskProgressColumn(), TimeRemainingColumn(), TextColumn("{task.description}"))
    with Progress(*columns, console=console.stderr(), transient=True) as progress:
        task = progress.add_task(experiment.title, total=1.0)
        return experiment.reproduce(
            request, lambda share, text: progress.update(task, completed=share, description=text)
        )


def _write(experiment: Experiment, outcome: Outcome, directory: Path) -> list[Path]:
    from importlib.util import find_spec

    from foreshock.papers.experiment import write

    drawn = find_spec("matplotlib") is not None
    if not drawn:
        click.echo("no figures: they need matplotlib, pip install 'foreshock[figures]'", err=True)
    return write(experiment, outcome, directory, formats=("png", "pdf") if drawn else ())


def _trainings(outcome: Outcome) -> Table:
    from foreshock.cli import console

    rows = console.table(*outcome.columns, numbers=outcome.columns[1:])
    for row in outcome.rows:
        rows.add_row(*row)
    return rows


def _claims(outcome: Outcome) -> Table:
    from rich.markup import escape

    from foreshock.cli import console

    seeds = list(dict.fromkeys(seed for claim in outcome.claims for seed in claim.measured))
    headings = [f"seed {seed}" for seed in seeds]
    rows = console.table("claim", "expected", *headings, "here", numbers=("expected", *headings))
    for claim in outcome.claims:
        style = "green" if claim.reproduced else "bold red"
        rows.add_row(
            escape(claim.text), claim.expected, *(_value(claim, seed) for seed in seeds),
            f"[{style}]{claim.verdict}[/]",
        )
    return rows


def _value(claim: Claim, seed: int) -> str:
    """Returns the measured value, a dash where the claim is about other seeds."""
    return f"{claim.measured[seed]:.4g}" if seed in claim.measured else "-"
