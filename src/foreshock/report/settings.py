"""The settings a run was made with, as rows to show."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from foreshock.report.wording import count, date, number
from foreshock.run import Run

_SHOWN = frozenset(
    {"name", "title", "subtitle", "mechanism", "created", "argv", "git", "versions", "platform", "device", "threads"}
    | {"optimizers", "tensors", "parameters", "format", "id", "steps", "ended"}
)

Row = tuple[str, str]


def settings(run: Run) -> list[tuple[str, list[Row]]]:
    """Returns groups of (label, value) rows: the optimizers, the model, the machine, the code, the rest."""
    meta = run.meta
    groups: list[tuple[str, list[Row]]] = []
    for place, optimizer in enumerate(_maps(meta.get("optimizers"))):
        name = str(optimizer.get("class", "optimizer"))
        sets = _maps(optimizer.get("groups"))
        for index, group in enumerate(sets):
            title = name + (f" {place}" if place else "") + (f", group {index}" if len(sets) > 1 else "")
            groups.append((title, [(str(key), _value(value)) for key, value in group.items() if _says(value)]))
        if not sets:
            groups.append((name, []))
    tensors = meta.get("tensors")
    model: list[Row] = []
    if isinstance(meta.get("parameters"), int):
        model.append(("parameters", f"{meta['parameters']:,}"))
    if isinstance(tensors, Sequence) and not isinstance(tensors, str):
        model.append(("tensors", f"{len(tensors):,}"))
    machine = [(key, _value(meta[key])) for key in ("device", "threads", "platform") if meta.get(key) is not None]
    code = _code(meta)
    rest = [(str(key), _value(value)) for key, value in meta.items() if key not in _SHOWN and value is not None]
    for title, rows in (("Model", model), ("Machine", machine), ("Code", code), ("More", rest)):
        if rows:
            groups.append((title, rows))
    return groups


def byline(run: Run) -> list[str]:
    """Returns the facts of a run in a few words each: optimizer, size, device, start, commit, and how it ended."""
    meta, facts = run.meta, []
    for optimizer in _maps(meta.get("optimizers"))[:2]:
        groups = _maps(optimizer.get("groups"))
        lr = groups[0].get("lr") if groups else None
        rate = f", lr {_value(lr)}" if isinstance(lr, (int, float)) else ""
        facts.append(f"{optimizer.get('class', 'optimizer')}{rate}")
    if isinstance(meta.get("parameters"), int):
        facts.append(count(meta["parameters"], "parameter"))
    if meta.get("device"):
        facts.append(str(meta["device"]))
    if meta.get("created"):
        facts.append(date(meta["created"]))
    git = meta.get("git")
    if isinstance(git, Mapping) and git.get("commit"):
        facts.append(f"commit {str(git['commit'])[:8]}")
    if "ended" in meta and meta["ended"] != "normally":
        facts.append(f"ended by {meta['ended']}")
    elif "ended" not in meta and meta.get("argv") and len(run):
        facts.append("no end recorded: still running, or killed")
    return facts


def _code(meta: Mapping[str, Any]) -> list[Row]:
    rows: list[Row] = []
    argv = meta.get("argv")
    if argv:
        rows.append(("command", " ".join(map(str, argv)) if isinstance(argv, (list, tuple)) else str(argv)))
    git = meta.get("git")
    if isinstance(git, Mapping) and git.get("commit"):
        rows.append(("git commit", str(git["commit"])[:12] + (" with local changes" if git.get("dirty") else "")))
    versions = meta.get("versions")
    if isinstance(versions, Mapping):
        rows += [(str(key), str(value)) for key, value in versions.items()]
    if meta.get("created"):
        rows.append(("started", date(meta["created"])))
    return rows


def _maps(value: Any) -> list[Mapping[str, Any]]:
    return [item for item in value if isinstance(item, Mapping)] if isinstance(value, (list, tuple)) else []


def _says(value: Any) -> bool:
    """Whether an optimizer option is worth a row: those that are off (False, None) are not."""
    return value is not None and value is not False


def _value(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return number(value, 6)
    if isinstance(value, (list, tuple)):
        shown = ", ".join(_value(item) for item in value[:12])
        return f"{shown}, ... ({count(len(value), 'item')})" if len(value) > 12 else shown
    if isinstance(value, Mapping):
        return ", ".join(f"{key} {_value(item)}" for key, item in value.items())
    return str(value)
