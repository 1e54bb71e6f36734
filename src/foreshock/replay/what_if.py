"""What would have prevented it: changes to try one at a time, with the names of the guard's actions where there is one.

`standard()` returns them all; `replay` leaves out those that make no sense for an event, and says why. An arm of one's
own changes the live objects, which are put back afterwards::

    def larger_eps(scene):
        for group in scene.optimizer.param_groups:
            group["eps"] = 1e-4

    replay(monitor, event, step_fn, arms=[what_if.cut_lr(), what_if.arm("eps", larger_eps, what="eps 1e-4")])
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

from foreshock.errors import UsageError
from foreshock.replay.arm import Arm
from foreshock.replay.data import other_batches, skip
from foreshock.replay.precision import exact_softmax, float64, float64_loss
from foreshock.replay.scene import NotApplicable, Scene
from foreshock.replay.state import beta2, floor, repair_moments, reset_moments
from foreshock.replay.steps import action, clip_grad, clip_update, cut_lr, hold_lr

__all__ = [
    "Arm", "NotApplicable", "Scene", "action", "arm", "beta2", "clip_grad", "clip_update", "cut_lr", "exact_softmax",
    "float64", "float64_loss", "floor", "hold_lr", "other_batches", "repair_moments", "reset_moments", "skip",
    "standard",
]  # fmt: skip


def standard() -> tuple[Arm, ...]:
    """Returns the changes that are tried where nothing else is asked for."""
    return (
        cut_lr(), hold_lr(), floor(), beta2(), clip_update(), clip_grad(), skip(), other_batches(), repair_moments(),
        reset_moments(), exact_softmax(), float64_loss(), float64(),
    )  # fmt: skip


def arm(name: str, change: Callable[[Scene], AbstractContextManager[Any] | None], *, what: str = "") -> Arm:
    """Returns a change of one's own.

    Args:
        name: shown, and the key of the result.
        change: called with the `Scene` when the training stands at the beginning of the window; changes what it likes
            of model, optimizer and whatever the window holds, or returns a context that is entered for the course.
        what: what it changes, in a few words.

    Raises:
        UsageError: the name is empty, or the change cannot be called.
    """
    if not isinstance(name, str) or not name or not callable(change):
        raise UsageError(f"what_if.arm(name, change): a name and a function of the scene, got {name!r} and {change!r}")
    return Arm(name, what or name.replace("_", " "), change)
