"""What an attribution says: who suffered, who pushed, which tensors, and whether the numbers add up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from foreshock.attribution.directions import Projection
from foreshock.attribution.naming import by_module

__all__ = ["Attribution", "concentration", "ranked"]

TOP = 20  # rows and tensors that are written down


@dataclass(frozen=True, slots=True, kw_only=True)
class Attribution:
    """The change of a loss over one step, or several, split exactly.

    rows.sum() = measured; columns add up to total; and culprits.sum() + history + decay + l2 + rest = total, where the
    step was split.

    Attributes:
        rows: victims, shape (n,), float64 on the CPU: by how much each example's loss changed, times its weight.
        culprits: by how much each example of the step's batch moved the loss, shape (m,); None without an optimizer.
        columns: the same by each tensor, by name.
        history: what momentum from before did.
        decay: what decoupled weight decay did.
        l2: what weight decay that is added to the gradient did.
        rest: what is left: a step whose making is not known, or gradients that are not the batch's.
        total: <e, delta>, the sum of the columns.
        measured: the change of the loss, from the examples' differences.
        completeness: |total - measured| / |measured|.
        coverage: how much of what the batch did the culprits account for.
        nodes: gradients taken along the step.
        projections: the parts along the directions that were asked for.
        loss: the loss before.
        clipped: what the batch's gradient was multiplied by before the optimizer consumed it; None where not known.
        labels: (step, index) of each culprit, where they are of several steps.
        notes: what else is to be known, in sentences.
    """

    rows: Tensor
    culprits: Tensor | None = None
    columns: Mapping[str, float]
    history: float = 0.0
    decay: float = 0.0
    l2: float = 0.0
    rest: float = 0.0
    total: float
    measured: float
    coverage: float = 1.0
    nodes: int
    projections: Mapping[str, Projection] = field(default_factory=dict)
    loss: float
    clipped: float | None = None
    labels: tuple[tuple[int, int], ...] | None = None
    notes: tuple[str, ...] = ()

    @property
    def completeness(self) -> float:
        """How far the sum of the columns is from the change that was measured, relative to it."""
        gap = abs(self.total - self.measured)
        return gap / abs(self.measured) if self.measured else (0.0 if gap == 0.0 else float("inf"))

    @property
    def modules(self) -> dict[str, float]:
        """The sums of the columns over the tensors of each module."""
        return by_module(self.columns)

    @property
    def concentration(self) -> int:
        """The smallest number of victims that carries 90 % of what rose."""
        return concentration(self.rows)

    @property
    def culprit_concentration(self) -> int | None:
        """The smallest number of culprits that carries 90 % of what was pushed up."""
        return None if self.culprits is None else concentration(self.culprits)

    def top(self, k: int = TOP) -> list[int]:
        """Returns the k culprits that pushed the loss up most, victims where there are no culprits; worst first."""
        return ranked(self.rows if self.culprits is None else self.culprits, k)

    def to_dict(self) -> dict[str, Any]:
        """Returns plain values, as they are kept with a run: the sums, the tensors, and the first of the rows."""
        result: dict[str, Any] = {
            "loss": self.loss,
            "measured": self.measured,
            "total": self.total,
            "completeness": self.completeness,
            "nodes": self.nodes,
            "columns": dict(sorted(self.columns.items(), key=lambda item: -abs(item[1]))[:TOP]),
            "modules": dict(sorted(self.modules.items(), key=lambda item: -abs(item[1]))[:TOP]),
            "projections": {name: found.to_dict() for name, found in self.projections.items()},
            "victims": [{"index": i, "value": float(self.rows[i])} for i in ranked(self.rows, TOP)],
            "victim_count": len(self.rows),
            "concentration": self.concentration,
            "notes": list(self.notes),
        }
        if self.culprits is None:
            return result
        culprits = self.culprits
        return result | {
            "culprits": [
                {"index": i, "value": float(culprits[i])}
                | ({} if self.labels is None else {"step": self.labels[i][0], "index": self.labels[i][1]})
                for i in ranked(culprits, TOP)
            ],
            "culprit_count": len(culprits),
            "culprit_concentration": self.culprit_concentration,
            "batch": float(culprits.sum()),
            "history": self.history,
            "decay": self.decay,
            "l2": self.l2,
            "rest": self.rest,
            "coverage": self.coverage,
            "clipped": self.clipped,
        }


def concentration(rows: Tensor | Sequence[float], share: float = 0.9) -> int:
    """Returns the smallest number of rows that carries a share of the positive part.

    >>> concentration([5.0, 4.0, 0.5, 0.5, -3.0])
    2
    """
    positive = torch.as_tensor(rows, dtype=torch.float64).clamp(min=0.0).sort(descending=True).values
    total = float(positive.sum())
    if not total:
        return 0
    return int((positive.cumsum(0) < share * total * (1.0 - 1e-12)).sum()) + 1


def ranked(rows: Tensor, k: int) -> list[int]:
    """Returns the places of the k largest, largest first; equal ones in their order."""
    return [int(i) for i in rows.argsort(descending=True, stable=True)[:k]]
