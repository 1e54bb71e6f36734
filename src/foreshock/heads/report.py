"""What was done to new rows, and what comes of it."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any


@dataclass(frozen=True, slots=True)
class NewRows:
    """The report of `init_new_rows`.

    Losses are those of the batch that was given, or else of the examples that the statistics kept: half of new, half of
    old classes (or as `new_share` says), every class counting alike on its side. Accuracies are of examples each held
    out from the solve and the calibration, so that they tell of those to come. None: there was nothing to tell it by.

    Attributes:
        new: the ids of the rows.
        method: how the rows came about.
        loss: the loss they are for, "ce" or "mse".
        calibrated: "ce", "scale", "grid" or None.
        first_loss: with these rows, as written.
        before_loss: with the rows as they were before.
        random_loss: with random rows, the mean over some draws.
        init_spike_ratio: first_loss / random_loss.
        new_accuracy: share of the new classes' examples told right before any training.
        old_accuracy: the same of the old classes.
        old_accuracy_before: share of the old classes' examples told right with no new row in the way.
        scale: s, by which the rows were multiplied.
        offset: mean of what was added to the new biases.
        old_weight: what an old example counted beside a new one, so that the old classes keep their accuracy.
        lam: ridge as applied.
        condition: condition number of the solve.
        separability: share of the new classes' examples that least squares tells right among all classes: what no
            linear calibration adds to.
        norm_ratio: mean norm of the new rows over that of the old ones.
        examples: what losses and accuracies are of: "batch", "sample" or "normal" (drawn with the classes' moments).
        warnings: what to know before relying on it.
    """

    new: tuple[int, ...]
    method: str
    loss: str
    calibrated: str | None
    first_loss: float | None
    before_loss: float | None
    random_loss: float | None
    init_spike_ratio: float | None
    new_accuracy: float | None
    old_accuracy: float | None
    old_accuracy_before: float | None
    scale: float | None
    offset: float | None
    old_weight: float | None
    lam: float | None
    condition: float | None
    separability: float | None
    norm_ratio: float | None
    examples: str
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

    @property
    def text(self) -> str:
        """The report in a few sentences, warnings last."""

        def said(name: str, form: str = ".3g") -> str:
            value = getattr(self, name)
            return "unknown" if value is None else format(value, form)

        way = f", calibrated ({self.calibrated})" if self.calibrated else ""
        sentences = [
            f"{len(self.new)} new rows by {self.method}{way}: the first loss is {said('first_loss')}, "
            f"{said('init_spike_ratio')} of the {said('random_loss')} of random rows.",
            f"Before any training {said('new_accuracy', '.1%')} of the new classes' examples are told right, and "
            f"{said('old_accuracy', '.1%')} of the old ones' ({said('old_accuracy_before', '.1%')} without new rows); "
            f"least squares can tell {said('separability', '.1%')} of the new ones.",
            *(f"Note: {each}." for each in self.warnings),
        ]
        return " ".join(sentences)

    def __str__(self) -> str:
        return self.text
