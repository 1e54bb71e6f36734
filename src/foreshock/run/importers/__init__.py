"""Runs that other tools recorded, read as a `Run`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from foreshock.errors import ImportFormatError, UsageError
from foreshock.run.importers import delimited, event_files, json_rows
from foreshock.run.importers.build import build
from foreshock.run.importers.guess import guess
from foreshock.run.run import Run

FORMATS = ("wandb-csv", "wandb-json", "tensorboard", "transformers", "csv", "jsonl")

__all__ = ["FORMATS", "import_run"]


def import_run(
    path: str | os.PathLike[str], *, format: str | None = None, columns: Mapping[str, str] | None = None
) -> Run:
    """Returns the run that another tool recorded, in memory; `Run.save` writes it as a run directory.

    Columns whose names say so become foreshock's own signals ("train/loss" becomes `loss`, "learning_rate" `lr`); all
    other numbers keep their names. NaN and infinity stay, what was not logged at a step is absent, and a run that was
    resumed and wrote steps again counts as written last.

    Args:
        path: a file (gzip is fine), or a folder of TensorBoard event files or of a Hugging Face checkpoint.
        format: one of `FORMATS`; None guesses it from name and content.
        columns: signal name -> column of the file, where the names do not say it: `{"loss": "train/ce", "step":
            "it"}`. In a W&B chart of several runs, `{"loss": "RUN - train/loss"}` also chooses the run.

    Raises:
        ImportFormatError: the file is not in that format, is damaged, or has no column for the loss; the message
            names the line and what to do.
        MissingExtraError: TensorBoard's own package is needed to read its files.
        UsageError: an unknown format.
    """
    place = Path(path)
    if format is not None and format not in FORMATS:
        raise UsageError(f"format must be one of {', '.join(map(repr, FORMATS))}, not {format!r}")
    if not place.exists():
        raise ImportFormatError(f"there is no file {place}")
    place, form = guess(place, format)
    if form == "tensorboard":
        return event_files.read_events(place, columns)
    if form == "wandb-csv":
        chart = delimited.read_wandb_chart(place, columns)
        return build(chart, form, delimited.chart_columns(columns))
    if form == "wandb-json":
        return build(json_rows.read_wandb_history(place), form, {"step": "_step"} | dict(columns or {}))
    readers = {
        "csv": delimited.read_table,
        "jsonl": json_rows.read_rows,
        "transformers": json_rows.read_trainer_state,
    }
    return build(readers[form](place), form, columns)
