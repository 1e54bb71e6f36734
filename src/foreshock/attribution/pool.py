"""Passes over a pool of examples that leave it, and the random streams, where they were."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

from foreshock.curvature.harmless import random_state, restore_random_state
from foreshock.curvature.loader import Batches
from foreshock.errors import UsageError

Batch = Any
Result = TypeVar("Result")


def passed(batches: Iterable[Batch], visit: Callable[[Batch], Result]) -> list[Result]:
    """Returns what a function gives for each batch.

    Every pass begins with the random numbers that the one before began with, so that a loader that shuffles gives the
    same batches again, and ends with those it found.

    Raises:
        UsageError: an iterator, which can be gone through only once, or no batches.
    """
    data = Batches(batches)
    state = random_state()
    try:
        with data.unmoved():
            found = [visit(batch) for batch in data.data]
    finally:
        restore_random_state(state)
    if not found:
        raise UsageError("batches: there is none")
    return found
