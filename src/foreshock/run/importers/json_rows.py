"""JSON logs: an object a line, a list of objects, or an object of columns; W&B history and the Trainer's state."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from foreshock.errors import CorruptRunError, ImportFormatError
from foreshock.run.importers.build import Log
from foreshock.run.importers.source import read_text

_SUMMARY = "train_runtime"  # the Trainer's last entry, means over the whole training, holds it


def read_rows(path: Path) -> Log:
    """Returns the rows of a JSONL file or of a JSON list; nested objects become names such as "train/loss".

    A last line that breaks off is what a killed writer leaves: it is dropped and listed in `problems`.

    Raises:
        ImportFormatError: something in it is no JSON, or no object.
    """
    text = read_text(path)
    try:
        whole = json.loads(text)
    except ValueError:
        return _lines(path, text)
    if isinstance(whole, dict) and isinstance(whole.get("log_history"), list):
        return _trainer(path, whole)
    if isinstance(whole, dict) and whole and all(isinstance(column, dict) for column in whole.values()):
        keys = {tuple(column) for column in whole.values()}
        if len(keys) == 1 and all(key.isdigit() for key in next(iter(keys))):  # DataFrame.to_json: each has the index
            whole = {name: list(column.values()) for name, column in whole.items()}
    if isinstance(whole, dict) and any(isinstance(column, list) for column in whole.values()):
        lists = {name: column for name, column in whole.items() if isinstance(column, list)}
        count = max(len(column) for column in lists.values())
        return Log(path, range(count), {name: (range(len(cells)), cells) for name, cells in lists.items()}, row="entry")
    if isinstance(whole, dict):
        whole = [whole]
    if not isinstance(whole, list):
        raise ImportFormatError(f"{path} is JSON, but neither a list of objects nor one object a line")
    return _log(path, enumerate(whole), "entry")


def read_wandb_history(path: Path) -> Log:
    """Returns a W&B history as JSON: rows with `_step` and `_timestamp`; its other private keys are dropped."""
    log = read_rows(path)
    if "_step" not in log.columns:
        raise ImportFormatError(f"{path} is no W&B history: no row has a `_step`. For other rows use format='jsonl'.")
    kept = ("_step", "_timestamp")
    log.columns = {name: cells for name, cells in log.columns.items() if name in kept or not name.startswith("_")}
    return log


def read_trainer_state(path: Path) -> Log:
    """Returns the log of the Hugging Face Trainer, from `trainer_state.json`.

    Raises:
        ImportFormatError: it has no `log_history`.
    """
    text = read_text(path)
    try:
        state = json.loads(text)
    except ValueError as error:
        raise ImportFormatError(f"{path} is not JSON: {error}") from error
    if not isinstance(state, dict) or not isinstance(state.get("log_history"), list):
        raise ImportFormatError(f"{path} has no `log_history`: it is not the trainer_state.json of a Trainer")
    return _trainer(path, state)


def _trainer(path: Path, state: Mapping[str, Any]) -> Log:
    history = state["log_history"]
    entries = [
        (number, entry)
        for number, entry in enumerate(history)
        if not (isinstance(entry, dict) and _SUMMARY in entry)
    ]
    log = _log(path, entries, "entry")
    if not any(name.split("_")[-1] == "loss" for name in log.columns):
        raise ImportFormatError(
            f"{path} holds no losses: the Trainer logged none. Set `logging_steps` (and `logging_strategy='steps'`)."
        )
    settings = {name: value for name, value in state.items() if isinstance(value, int | float | str)}
    summary = next((entry for entry in reversed(history) if isinstance(entry, dict) and _SUMMARY in entry), None)
    log.meta["trainer"] = settings | ({"summary": summary} if summary else {})
    return log


def _lines(path: Path, text: str) -> Log:
    rows: list[tuple[int, Any]] = []
    problems: list[CorruptRunError] = []
    lines = text.split("\n")
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            rows.append((number, json.loads(line)))
        except ValueError as error:
            if number == len(lines) and rows:  # no newline behind it
                problems.append(CorruptRunError(f"{path}, line {number} breaks off and was left out"))
                break
            raise ImportFormatError(f"{path}, line {number} is not JSON: {error}. Repair or remove it.") from error
    log = _log(path, rows, "line")
    log.problems = problems
    return log


def _log(path: Path, rows: Iterable[tuple[int, Any]], what: str) -> Log:
    lines: list[int] = []
    columns: dict[str, tuple[list[int], list[Any]]] = {}
    for number, row in rows:
        if not isinstance(row, dict):
            raise ImportFormatError(f"{path}, {what} {number} is not an object of names and values: {str(row)[:60]!r}")
        place = len(lines)
        lines.append(number)
        _add(columns, place, row, "")
    return Log(path, lines, dict(columns), row=what)


def _add(columns: dict[str, tuple[list[int], list[Any]]], place: int, row: Mapping[str, Any], prefix: str) -> None:
    for name, cell in row.items():
        if isinstance(cell, dict):
            _add(columns, place, cell, f"{prefix}{name}/")
        elif cell is not None and not isinstance(cell, list):
            column = columns.get(prefix + name)
            if column is None:
                column = columns[prefix + name] = ([], [])
            column[0].append(place)
            column[1].append(cell)
