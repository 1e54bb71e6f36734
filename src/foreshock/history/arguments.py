"""What a history is made of, held against what it can work with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from foreshock.errors import UsageError
from foreshock.guard.snapshots import Snapshots
from foreshock.monitor import Monitor

Batches = Callable[[int], Any] | Mapping[int, Any]
"""What makes the batch of a step again."""


def checked(monitor: Any, snapshots: Any, batches: Any, **positive: Any) -> None:
    """Raises a UsageError that names the argument of a history that cannot work."""
    if not isinstance(monitor, Monitor):
        raise UsageError(f"History(monitor): a foreshock.Monitor is needed, got {type(monitor).__name__}")
    if snapshots is not None and not isinstance(snapshots, Snapshots):
        raise UsageError(f"History(snapshots=...): foreshock.Snapshots are needed, for example those of a guard, "
                         f"guard.snapshots; got {type(snapshots).__name__}")  # fmt: skip
    checked_batches("History", batches)
    for name, value in positive.items():
        if value is not None and (not isinstance(value, int) or isinstance(value, bool) or value < 1):
            raise UsageError(f"History({name}=...): must be a positive integer, got {value!r}")


def checked_batches(owner: str, batches: Any) -> None:
    """Raises a UsageError where this cannot make batches again."""
    if batches is not None and not callable(batches) and not isinstance(batches, Mapping):
        raise UsageError(f"{owner}(batches=...): must be a function of a step number or a mapping of them, got "
                         f"{type(batches).__name__}")  # fmt: skip


def made_again(batches: Batches, step: int) -> Any:
    """Returns the batch that a function or a mapping gives for a step.

    Raises:
        UsageError: a mapping has none.
    """
    if not isinstance(batches, Mapping):
        return batches(step)
    try:
        return batches[step]
    except KeyError as error:
        raise UsageError(f"batches: there is none for step {step}; give those of all steps of the window") from error
