"""Writes down what changes about an optimizer while it trains: tensors that come, go or are replaced, and settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foreshock.probes.plan import CONSTANTS, Plan
from foreshock.provenance import plain

APART = 8  # steps that a setting must have stood still for its change to be worth a note: schedules move it always
MOST = 64  # notes of settings


class Changes:
    """Compares each step's tensors and settings with those of the step before; costs nothing where both stay.

    Notes it writes: `parameters_changed` with the names that were "added", "removed", "resized" or "replaced" (by
    another tensor of the same shape); `settings_changed` with the "group", the "setting", what it "was" and is "now".

    Args:
        note: writes a note of the run, by its kind and fields.
    """

    def __init__(self, note: Callable[..., None]) -> None:
        self._note = note
        self._shapes: dict[str, list[int]] = {}
        self._ids: dict[str, int] = {}
        self._plan: Plan | None = None
        self._constants: list[tuple[Any, ...]] | None = None
        self._changed = -APART
        self._notes = 0

    def look(self, step: int, plan: Plan) -> None:
        """Takes the tensors and settings of the step that is about to be taken."""
        if plan is not self._plan:
            self._plan = plan
            self._tensors(step, plan)
        if plan.constants is not self._constants:
            last, self._constants = self._constants, plan.constants
            if last is not None:
                self._settings(step, last, plan.constants)

    def _tensors(self, step: int, plan: Plan) -> None:
        named = list(zip(plan.tensors, plan.params, strict=True))
        was, shapes = self._shapes, {name: list(tensor.shape) for name, tensor in named}
        known, ids = self._ids, {name: id(tensor) for name, tensor in named}
        self._shapes, self._ids = shapes, ids
        if not was:
            return
        found = {
            "added": [name for name in shapes if name not in was and ids[name] not in known.values()],
            "removed": [name for name in was if name not in shapes],
            "resized": [name for name in shapes if name in was and shapes[name] != was[name]],
            "replaced": [
                name for name in shapes
                if shapes[name] == was.get(name) and name in known and ids[name] != known[name]
            ],
        }  # fmt: skip
        if any(found.values()):
            self._note("parameters_changed", step=step, **found)

    def _settings(self, step: int, last: list[tuple[Any, ...]], now: list[tuple[Any, ...]]) -> None:
        steady, self._changed = step - self._changed >= APART, step
        for group, (old, new) in enumerate(zip(last, now, strict=False)):
            for setting, before, after in zip(CONSTANTS, old, new, strict=True):
                if before != after and steady and self._notes < MOST:
                    self._notes += 1
                    self._note("settings_changed", step=step, group=group, setting=setting, was=plain(before),
                               now=plain(after))  # fmt: skip

    def state_dict(self) -> dict[str, list[int]]:
        """Returns the shapes by name: a resumed run may have others."""
        return dict(self._shapes)

    def load_state_dict(self, state: Mapping[str, list[int]]) -> None:
        """Goes on from the shapes that `state_dict` returned; tensors of the same shape count as the same."""
        self._shapes, self._ids, self._plan, self._constants = dict(state), {}, None, None
