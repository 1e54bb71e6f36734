"""CSV and TSV tables, among them the charts that W&B exports."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from foreshock.errors import CorruptRunError, ImportFormatError
from foreshock.run.importers.build import Log
from foreshock.run.importers.cells import numbers
from foreshock.run.importers.names import listed
from foreshock.run.importers.source import read_text

_DELIMITERS = ",\t;|"
_CHART = re.compile(r"(?P<run>.+) - (?P<metric>.+?)(?P<bound>__MIN|__MAX)?")
_BOOKKEEPING = {"_step", "_runtime", "_timestamp"}


def read_table(path: Path) -> Log:
    """Returns a CSV or TSV file: any delimiter of comma, tab, semicolon and bar, any order of columns.

    A last line that is too short is what a killed writer leaves: it is dropped and listed in `problems`.

    Raises:
        ImportFormatError: there is no header, or a line has too few or too many fields.
    """
    text = read_text(path)
    head = next(line for line in text.splitlines() if line.strip() and not line.startswith("#"))
    delimiter = max(_DELIMITERS, key=head.count)
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter)
    lines: list[int] = []
    rows: list[list[str]] = []
    problems: list[CorruptRunError] = []
    header: list[str] = []
    short = 0
    try:
        for row in reader:
            if not header:
                if any(map(str.strip, row)) and not row[0].startswith("#"):
                    header = _header(row, path, reader.line_num)
                continue
            if row == header or not any(map(str.strip, row)):
                continue  # an empty line, or the header again, as resumed loggers write it
            if short:
                break
            if len(row) > len(header):
                if any(map(str.strip, row[len(header) :])):
                    raise _ragged(path, reader.line_num, len(row), len(header))
                row = row[: len(header)]
            if len(row) < len(header):
                short = reader.line_num
            lines.append(reader.line_num)
            rows.append(row)
    except csv.Error as error:
        raise ImportFormatError(f"{path}, line {reader.line_num}: {error}; it is not a CSV table") from error
    if short:
        if short < reader.line_num or text.endswith(("\n", "\r")):
            raise _ragged(path, short, len(rows[-1]), len(header))
        problems.append(CorruptRunError(f"{path}, line {short} breaks off and was left out"))
        del rows[-1], lines[-1]
    columns = dict(zip(header, zip(*rows, strict=True), strict=True)) if rows else {}
    whole = range(len(rows))
    cells: dict[str, tuple[Sequence[int], Sequence[Any]]] = {
        name: (whole, column) for name, column in columns.items() if not name.startswith("Unnamed: ") and name
    }
    return Log(path, lines, cells, problems=problems, decimal_comma=delimiter != ",")


def read_wandb_chart(path: Path, columns: Mapping[str, str] | None) -> Log:
    """Returns one run of a chart that was exported from W&B as CSV.

    Its columns are the x axis and, for each run, "RUN - METRIC" with "RUN - METRIC__MIN" and "__MAX": where the
    chart thinned the run out, these differ from the value, and are kept as METRIC__MIN and METRIC__MAX.

    Raises:
        ImportFormatError: the table is no such chart, or holds several runs and `columns` does not say which.
    """
    log = read_table(path)
    parts = {name: match for name in log.columns if (match := _CHART.fullmatch(name))}
    if not parts:
        raise ImportFormatError(
            f"{path} is no chart exported from W&B: no column is called 'RUN - METRIC'; it has: {listed(log.columns)}. "
            "For any other table use format='csv'."
        )
    runs = list(dict.fromkeys(match["run"] for match in parts.values()))
    asked = list(dict.fromkeys(parts[name]["run"] for name in (columns or {}).values() if name in parts))
    if len(asked) > 1 or (not asked and len(runs) > 1):
        example = next(name for name, match in parts.items() if not match["bound"] and match["metric"] != "_step")
        raise ImportFormatError(
            f"{path} holds {len(asked or runs)} runs: {listed(asked or runs)}. Choose one by naming its loss, e.g. "
            f"columns={{'loss': {example!r}}} (on the command line: --column 'loss={example}')."
        )
    run = (asked or runs)[0]
    kept: dict[str, tuple[Sequence[int], Sequence[Any]]] = {}
    for name, cells in log.columns.items():
        match = parts.get(name)
        if match is None:
            kept[name] = cells
        elif match["run"] == run and match["bound"] is None:
            kept[match["metric"]] = cells
        elif match["run"] == run and match["metric"] not in _BOOKKEEPING:
            value = log.columns.get(f"{run} - {match['metric']}")
            if value is None or _differ(cells[1], value[1]):
                kept[match["metric"] + match["bound"]] = cells
    log.columns = _only_rows_of(kept, {name for name in kept if name not in log.columns}, log)
    log.meta["name"] = run
    return log


def chart_columns(columns: Mapping[str, str] | None) -> dict[str, str] | None:
    """Returns the user's choice of columns with "RUN - METRIC" as the metric alone, as the log now has them."""
    if columns is None:
        return None
    found = {signal: _CHART.fullmatch(name) for signal, name in columns.items()}
    return {
        signal: name if (match := found[signal]) is None else match["metric"] + (match["bound"] or "")
        for signal, name in columns.items()
    }


def is_chart(header: str) -> bool:
    """Returns whether the first line of a CSV file is that of a W&B chart."""
    names = next(csv.reader([header]), [])
    charted = [name for name in names if _CHART.fullmatch(name)]
    return bool(charted) and len(charted) >= len(names) - 2


def _only_rows_of(
    kept: dict[str, tuple[Sequence[int], Sequence[Any]]], metrics: set[str], log: Log
) -> dict[str, tuple[Sequence[int], Sequence[Any]]]:
    """Returns the columns without the rows that belong to other runs of the chart, in which every metric is empty."""
    there = np.zeros(len(log.lines), np.bool_)
    for name in metrics:
        there |= np.array([cell != "" for cell in kept[name][1]], np.bool_)
    rows = np.flatnonzero(there).tolist()
    log.lines = [log.lines[row] for row in rows]
    return {name: (range(len(rows)), [cells[row] for row in rows]) for name, (_, cells) in kept.items()}


def _differ(left: Sequence[Any], right: Sequence[Any]) -> bool:
    if tuple(left) == tuple(right):
        return False
    one, other = numbers(left), numbers(right)
    return not (
        np.array_equal(one.places, other.places) and np.array_equal(one.values, other.values, equal_nan=True)
    )


def _header(row: list[str], path: Path, line: int) -> list[str]:
    names = [cell.strip().strip("\ufeff") for cell in row]
    if all(len(numbers([name]).values) for name in names if name):
        raise ImportFormatError(
            f"{path}, line {line}: numbers where column names are expected. Put a header before it, e.g. 'step,loss'."
        )
    seen: dict[str, int] = {}
    for place, name in enumerate(names):
        seen[name] = seen.get(name, 0) + 1
        if seen[name] > 1 and name:
            names[place] = f"{name} ({seen[name]})"
        elif seen[name] > 1:
            names[place] = f"Unnamed: {place}"
    return names


def _ragged(path: Path, line: int, fields: int, expected: int) -> ImportFormatError:
    return ImportFormatError(
        f"{path}, line {line}: {fields} fields where the header has {expected}. Repair or remove that line."
    )
