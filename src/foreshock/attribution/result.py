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
SLIGHT = 0.1  # share of an odd batch's excess below which what updates did is not looked at for blame


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
        event: the key of the event that was attributed, and with it what follows.
        step: the guilty step: whose update raised the loss, or whose batch is odd.
        seen: the step of whose batch the victims are.
        from_step, from_batch: the largest rise from a batch to the next, split into what the update did to that one
            and what it has by itself.
        suspects: where the batch is odd, the excess of each of its examples over the batch before, shape (n,).
        shown: (step, index) -> what the user's `decode` made of the example, {"text": ...} or {"image": ...}.
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
    event: tuple[str, str, int] | None = None
    step: int | None = None
    seen: int | None = None
    from_step: float | None = None
    from_batch: float | None = None
    suspects: Tensor | None = None
    shown: Mapping[tuple[int, int], Mapping[str, str]] = field(default_factory=dict)
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

    def blamed(self, k: int = TOP) -> list[tuple[int | None, int]]:
        """Returns (step, index) of the k examples that did most: by what they pushed and, of an odd batch, exceeded."""
        return [label for label, _ in self._blame()[:k]]

    def _blame(self) -> list[tuple[tuple[int | None, int], float]]:
        values: dict[tuple[int | None, int], float] = {}
        if self.culprits is not None:
            labels = self.labels or [(self.step, i) for i in range(len(self.culprits))]
            values = {label: float(row) for label, row in zip(labels, self.culprits, strict=True)}
        if self.suspects is not None:
            if abs(self.measured) < SLIGHT * float(self.suspects.sum()):
                values = {}  # the updates did next to nothing: what examples pushed and pulled is beside the point
            for i, row in enumerate(self.suspects):
                values[self.step, i] = values.get((self.step, i), 0.0) + float(row)
        return sorted(values.items(), key=lambda item: -item[1])

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
            "victims": self._told(self.rows, [(self.seen, i) for i in range(len(self.rows))]),
            "victim_count": len(self.rows),
            "concentration": self.concentration,
            "notes": list(self.notes),
        }
        if self.event is not None:
            result |= {"kind": "attribution", "version": 1, "event": list(self.event), "step": self.step}
            result |= {"seen": self.seen, "from_step": self.from_step, "from_batch": self.from_batch}
            result["blamed"] = [
                {"step": step, "index": index, "value": value, **self.shown.get((step or 0, index), {})}
                for (step, index), value in self._blame()[:TOP]
            ]
        if self.suspects is not None:
            result["suspects"] = self._told(self.suspects, [(self.step, i) for i in range(len(self.suspects))])
        if self.culprits is None:
            return result
        culprits = self.culprits
        return result | {
            "culprits": self._told(culprits, self.labels or [(self.step, i) for i in range(len(culprits))]),
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

    def _told(self, rows: Tensor, labels: Sequence[tuple[int | None, int]]) -> list[dict[str, Any]]:
        """Returns the largest rows as plain values, with what they look like where that is known."""
        told = []
        for i in ranked(rows, TOP):
            step, index = labels[i]
            seen = {} if step is None else {"step": step, **self.shown.get((step, index), {})}
            told.append({"index": index, "value": float(rows[i]), **seen})
        return told


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
