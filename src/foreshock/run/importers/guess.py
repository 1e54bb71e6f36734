"""Which file of a folder holds the run, and in which format a file is."""

from __future__ import annotations

import re
from pathlib import Path

from foreshock.errors import ImportFormatError
from foreshock.run.importers import event_files
from foreshock.run.importers.delimited import is_chart
from foreshock.run.importers.source import read_text

_STATE = "trainer_state.json"
_TABLES = ("metrics.csv", "log.csv", "progress.csv", "metrics.jsonl", "log.jsonl", "history.jsonl")


def guess(path: Path, format: str | None) -> tuple[Path, str]:
    """Returns the file (or the folder of event files) to read, and its format.

    Raises:
        ImportFormatError: a folder holds nothing that is known, or a file is no text.
    """
    if path.is_dir():
        if (path / "run.json").exists():
            raise ImportFormatError(f"{path} is a run of foreshock already; Run.load reads it")
        if format == "tensorboard" or (format is None and any(path.rglob(f"*{event_files.MARK}*"))):
            return path, "tensorboard"
        path = _file_in(path, format)
    if format is not None:
        return path, format
    if event_files.MARK in path.name:
        return path, "tensorboard"
    text = read_text(path).lstrip("\ufeff \t\r\n")
    if not text.startswith(("{", "[")):
        return path, "wandb-csv" if is_chart(text.partition("\n")[0]) else "csv"
    if path.name == _STATE or re.match(r'\{[^{}\[]*("log_history"|"best_metric"|"best_model_checkpoint")', text):
        return path, "transformers"
    return path, "wandb-json" if '"_step"' in text[: 1 << 16] else "jsonl"


def _file_in(folder: Path, format: str | None) -> Path:
    states = list(folder.glob(f"checkpoint-*/{_STATE}"))
    states.sort(key=lambda state: int(re.sub(r"\D", "", state.parent.name) or 0))  # checkpoint-500, checkpoint-1000
    found = [folder / _STATE] if (folder / _STATE).exists() else states[-1:]
    if format in (None, "transformers") and found:
        return found[0]
    tables = [folder / name for name in _TABLES if (folder / name).exists()]
    if format != "transformers" and len(tables) == 1:
        return tables[0]
    names = sorted(entry.name for entry in folder.iterdir())[:8]
    raise ImportFormatError(
        f"{folder} is a folder without a log that is known (event files, {_STATE}, {', '.join(_TABLES[:2])}); it has: "
        f"{', '.join(names) or 'nothing'}. Give the file itself."
    )
