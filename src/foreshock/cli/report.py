"""`foreshock report`: one offline page, and the summary on the terminal."""

from __future__ import annotations

from pathlib import Path

import click

from foreshock.cli.reading import open_runs, reading_options

__all__ = ["report"]


@click.command(short_help="Write one offline HTML page about a run or several; print the summary.")
@click.argument("paths", metavar="RUN...", nargs=-1, required=True, type=click.Path())
@click.option(
    "-o", "--output", default="report.html", show_default=True, type=click.Path(dir_okay=False, path_type=Path),
    help="The page to write.",
)
@click.option("--title", help="Heading of the page; the run's own name when not given.")
@click.option("--open", "show", is_flag=True, help="Open the page in the browser.")
@reading_options
def report(
    paths: tuple[str, ...],
    output: Path,
    title: str | None,
    show: bool,
    form: str | None,
    columns: dict[str, str],
) -> None:
    """Writes one self-contained HTML page about the runs and prints a short summary of each.

    The page needs no network and no server: mail it, archive it, open it anywhere. RUN is a run directory (also of a
    training that is still going on) or a file of another tool.

    \b
    foreshock report runs/train -o train.html
    foreshock report runs/a runs/b --title "before and after" --open
    foreshock report checkpoint-500/trainer_state.json
    """
    from foreshock.cli import console
    from foreshock.detect import scan
    from foreshock.errors import RunError
    from foreshock.report import summary, write

    runs = open_runs(paths, form=form, columns=columns)
    events = []
    for path, run in zip(paths, runs, strict=True):
        events.append(scan(console.counted(run, f"scanning {path}")))
        click.echo(summary(run, events[-1]))
    with console.busy(f"writing {output}"):
        try:
            page = write(runs, output, events=events, title=title)
        except OSError as error:
            raise RunError(f"the page {str(output)!r} cannot be written: {error.strerror or error}") from error
    click.echo(f"page: {page} ({page.stat().st_size / 1e6:.1f} MB)")
    if show:
        click.launch(str(page))
