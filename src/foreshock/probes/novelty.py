"""Which right classes have been seen at readings of the softmax, so that new ones are noticed when they come."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

NEW = 8  # readings for which a class counts as new, that of its first sight included: 160 steps at the usual distance
NEVER = 2**31 - 1


class Novelty:
    """Remembers for each class the reading at which it was first seen: 4 bytes a class, few kernels a reading."""

    def __init__(self) -> None:
        self._first = torch.empty(0, dtype=torch.int32)
        self._readings = 0

    def take(self, target: Tensor, counted: Tensor, classes: int) -> Tensor | None:
        """Returns the share of rows whose class was first seen less than `NEW` readings ago; None at the first ones.

        Args:
            target: (N,) right class of each row.
            counted: (N,) which rows count.
            classes: how many there are; a head may have grown since.

        >>> novelty, rows = Novelty(), torch.ones(4, dtype=torch.bool)
        >>> [novelty.take(torch.tensor([0, 1, 1, 0]), rows, 3) for _ in range(NEW)][-1]
        >>> [float(novelty.take(torch.tensor([0, 1, 2, label]), rows, 3)) for label in (0, 2)]
        [0.25, 0.5]
        """
        reading, self._readings = self._readings, self._readings + 1
        known = self._first.to(target.device)
        if len(known) < classes:
            known = torch.cat([known, known.new_full((classes - len(known),), NEVER)])
        rows = target.clamp(0, len(known) - 1).long()
        counts = counted & (rows == target)
        seen = torch.where(counts, reading, NEVER).to(known.dtype)
        self._first = known.scatter_reduce(0, rows, seen, "amin")
        if reading < NEW:
            return None
        fresh = (self._first[rows] > reading - NEW) & counts
        return fresh.sum() / counts.sum().clamp(min=1)

    def state_dict(self) -> dict[str, Any]:
        """Returns what has been seen."""
        return {"first": self._first.cpu().clone(), "readings": self._readings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._first, self._readings = state["first"].clone(), int(state["readings"])
