"""`foreshock import`: another tool's record of a training, kept as a run directory."""

from __future__ import annotations

from pathlib import Path

import click

from foreshock.cli.reading import is_run, open_run, reading_options

__all__ = ["import_"]


@click.command("import", short_help="Turn a W&B, TensorBoard, Hugging Face, CSV or JSONL record into a run.")
@click.argument("file", type=click.Path())
@click.option("-o", "--output", required=True, type=click.Path(path_type=Path), help="The run directory to make.")
@reading_options
def import_(file: str, output: Path, form: str | None, columns: dict[str, str]) -> None:
    """Reads FILE and writes it as a run directory.

    FILE is a W&B CSV export or JSON history, a TensorBoard event file or folder, a Hugging Face trainer_state.json,
    or a plain CSV or JSONL table with a column for the loss. `scan` and `report` read such files directly too;
    importing keeps them beside your other runs.

    \b
    foreshock import wandb-export.csv -o runs/old
    foreshock import metrics.jsonl -o runs/old --column loss=train/ce --column step=iteration
    """
    from foreshock.cli import console
    from foreshock.errors import UsageError

    if Path(file).is_dir() and is_run(Path(file)):
        raise UsageError(f"{file!r} is a run directory already; `foreshock report {file}` reads it as it is")
    with console.busy(f"reading {file}"):
        run = open_run(file, form=form, columns=columns)
        saved = run.save(output)
    shown = ", ".join(run.columns[:6]) + (f" and {len(run.columns) - 6} more" if len(run.columns) > 6 else "")
    click.echo(f"{saved}: {len(run):,} steps of {shown}")
    click.echo(f"next: foreshock report {saved}")
