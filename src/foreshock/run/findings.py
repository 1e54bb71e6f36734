"""Findings: what experiments found out about the events of a run, kept with the run as plain values.

A finding is a dict with at least "kind" ("replay", "attribution"), "version" and "event", the key of the event that it
is about. In a run directory each is a document of its own, `findings/NUMBER-KIND.json`, written as a whole.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from foreshock.errors import ForeshockWarning, RunError, UsageError
from foreshock.run import files
from foreshock.run.event import Event

FOLDER = "findings"
_NAME = re.compile(r"(\d+)-[a-z_]+\.json")
_KIND = re.compile(r"[a-z_]+")

Finding = dict[str, Any]


def checked(finding: Mapping[str, Any]) -> Finding:
    """Returns a finding as plain values.

    Raises:
        UsageError: it does not say what it is, or what it is about.
    """
    plain: Finding = _writable(files.to_plain(finding))
    kind, event = plain.get("kind"), plain.get("event")
    if not isinstance(kind, str) or not _KIND.fullmatch(kind):
        raise UsageError(f'a finding says what it is in "kind", in lower case with underscores; got {kind!r}')
    if not isinstance(event, list) or len(event) != 3:
        raise UsageError(f'a finding says in "event" what it is about, by Event.key; got {event!r}')
    return {"version": 1} | plain


def _writable(value: Any) -> Any:
    """Returns plain values with "?" for halves of characters, which no file can hold; texts of examples may be cut."""
    if isinstance(value, str):
        return value.encode("utf-8", "replace").decode()
    if isinstance(value, list):
        return [_writable(each) for each in value]
    return {_writable(key): _writable(each) for key, each in value.items()} if isinstance(value, dict) else value


def about(findings: Sequence[Finding], event: Event, kind: str | None = None) -> list[Finding]:
    """Returns the findings about an event, the newest last; of one kind where that is given."""
    key = list(event.key)
    return [each for each in findings if each.get("event") == key and kind in (None, each.get("kind"))]


def read(root: Path) -> list[Finding]:
    """Returns the findings of a run directory in the order in which they were written; what is damaged is left out."""
    found = []
    for _, path in _numbered(root):
        fields, wrong = files.decode(path.read_bytes())
        if wrong:
            warnings.warn(f"{path} {wrong}; this finding is left out", ForeshockWarning, stacklevel=3)
        else:
            found.append(fields)
    return found


def write(root: Path, finding: Finding) -> Path:
    """Adds a finding to a run directory, whole or not at all, and returns its path.

    Raises:
        RunError: the directory cannot be written.
    """
    folder = root / FOLDER
    try:
        folder.mkdir(exist_ok=True)
        number = max((number for number, _ in _numbered(root)), default=-1) + 1
        content = files.encode_document(finding)
        while not files.create(path := folder / f"{number:04d}-{finding['kind']}.json", content):
            number += 1
    except OSError as error:
        raise RunError(f"cannot write a finding into {folder}: {error.strerror or error}") from error
    return path


def _numbered(root: Path) -> list[tuple[int, Path]]:
    folder = root / FOLDER
    entries = folder.iterdir() if folder.is_dir() else ()
    return sorted((int(match[1]), entry) for entry in entries if (match := _NAME.fullmatch(entry.name)))
