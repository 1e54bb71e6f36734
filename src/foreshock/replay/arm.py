"""One thing changed: what an arm of a replay is."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any

from foreshock.replay.scene import Scene

Change = Callable[[Scene], AbstractContextManager[Any] | None]


def _nothing(_: Scene) -> None:
    return None


@dataclass(frozen=True, slots=True)
class Arm:
    """One change to the steps around an event.

    Attributes:
        name: of the arm; that of the guard's action, where there is one.
        what: what is changed, in a few words.
        change: called with the scene, at the window's snapshot; changes the live objects, or returns what is entered
            for the course. Raises `NotApplicable` where it makes no sense. All it does to the training is undone.
        batches: step -> the batch in place of its own.
        left_out: steps that are not taken.
        cast: what becomes of each batch.
    """

    name: str
    what: str
    change: Change = _nothing
    batches: Callable[[Scene], Mapping[int, Any]] | None = None
    left_out: Callable[[Scene], Iterable[int]] | None = None
    cast: Callable[[Any], Any] | None = None
