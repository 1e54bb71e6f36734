"""What was done to new rows, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class NewRows:
    """The report of `init_new_rows`. Losses and accuracies are those of the examples that the statistics kept.

    Attributes:
        new: the ids of the rows.
        method: how the rows came about.
        loss: the loss they are for, "ce" or "mse".
        first_loss: of half new, half old examples, every class counting the same within its half, with these rows.
        before_loss: the same with the rows as they were.
        random_loss: the same with random rows, the mean over some draws.
        init_spike_ratio: first_loss / random_loss.
        new_accuracy: share of the new examples told right before any training, None without any.
        old_accuracy: the same for old ones.
        old_accuracy_before: share of the old examples told right with no new row in the way.
        scale: s, by which the rows were multiplied; None without calibration.
        offset: c, added to the new biases; None without calibration.
        lam: ridge as applied.
        condition: condition number of the solve.
        separability: share of new examples that the least-squares rows alone tell from one another.
        warnings: what to know before relying on it.
    """

    new: tuple[int, ...]
    method: str
    loss: str
    first_loss: float | None
    before_loss: float | None
    random_loss: float | None
    init_spike_ratio: float | None
    new_accuracy: float | None
    old_accuracy: float | None
    old_accuracy_before: float | None
    scale: float | None
    offset: float | None
    lam: float | None
    condition: float | None
    separability: float | None
    warnings: tuple[str, ...]

    def to_dict(self) -> dict[str, Any]:
        """Returns the report in plain numbers, strings and lists; what is not finite is None."""
        plain: dict[str, Any] = {}
        for each in fields(self):
            value = getattr(self, each.name)
            if isinstance(value, tuple):
                value = list(value)
            plain[each.name] = None if isinstance(value, float) and not math.isfinite(value) else value
        return plain
