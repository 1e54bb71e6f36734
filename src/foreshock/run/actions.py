"""Interventions as they are written down: a note of kind "action" holds one, under the names of its fields.

A note has a `kind` of its own, so that of the action is kept as "action"::

    {"step": 812, "time": 1764000000.0, "kind": "action", "action": "skip", "data": "requeue", "reason": "...", ...}
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

from foreshock.errors import UsageError
from foreshock.run.action import Action, CutLr, Rollback

KIND = "action"
_NUMBERS = ("factor", "limit", "kappa", "steps", "before", "skip")


@dataclass(frozen=True, slots=True, kw_only=True)
class Unknown(Action):
    """An action that this version cannot name: one of a later version, or one whose fields do not make sense.

    Attributes:
        name: what it is called there.
        fields: all else that was written.
    """

    kind: ClassVar[str] = "unknown"

    name: str = ""
    fields: Mapping[str, Any] = field(default_factory=dict)


def as_note(action: Action) -> dict[str, Any]:
    """Returns the fields of the note that keeps an action, to be written as `note("action", **as_note(action))`.

    >>> from foreshock.run.action import Scale
    >>> as_note(Scale(factor=0.1, step=7, reason="why not"))
    {'step': 7, 'reason': 'why not', 'cause': None, 'factor': 0.1, 'action': 'scale_update'}
    """
    written = action.to_dict()
    return written | {"action": written.pop("kind")}


def from_note(note: Mapping[str, Any]) -> Action:
    """Returns the action that a note keeps; one that cannot be made of it comes as `Unknown`.

    >>> from_note({"step": 7, "kind": "action", "action": "teleport", "to": "Mars"})
    Unknown(step=7, reason='', cause=None, name='teleport', fields={'to': 'Mars'})
    """
    step = note.get("step")
    known = {**note, "kind": str(note.get("action")), "step": step if isinstance(step, int) else -1}
    try:
        if all(isinstance(known.get(name, 0), int | float) for name in _NUMBERS):
            return Action.from_dict(known)
    except (UsageError, TypeError, ValueError):
        pass
    rest = {key: value for key, value in note.items() if key not in ("step", "time", "kind", "action", "reason")}
    return Unknown(step=known["step"], reason=str(note.get("reason", "")), name=known["kind"], fields=rest)


def actions(notes: Sequence[Mapping[str, Any]]) -> list[Action]:
    """Returns the interventions among the notes, in order of the attempts they answered, first written first."""
    return sorted((from_note(note) for note in notes if note.get("kind") == KIND), key=lambda action: action.step)


def reach(note: Mapping[str, Any]) -> tuple[float, float]:
    """Returns the first and last step that a note is about; all there are where it names none.

    A rollback is about what it undoes as well, a cut of the learning rate about all steps that are taken with it.
    """
    step, name = note.get("step"), note.get("action") if note.get("kind") == KIND else None
    if not isinstance(step, int):
        return float("-inf"), float("inf")
    if name == Rollback.kind and isinstance(note.get("before"), int):
        return min(note["before"], step), step
    if name == CutLr.kind and isinstance(note.get("steps"), int):
        return step, step + max(note["steps"], 1) - 1
    return step, step
