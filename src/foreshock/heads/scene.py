"""What new rows meet: examples of new and old classes, and what the old rows make of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

_CHUNK = 1 << 24  # logits held at once


@dataclass(frozen=True, slots=True)
class Scene:
    """Examples, and what of the old logits a loss and an accuracy need.

    Attributes:
        features: (n, d) float64.
        labels: (n,) their classes.
        counts: (n,) how often each is seen.
        target: (n,) place of the class among the new ones, -1 for an example of an old class.
        rest: (n,) log of the sum of exp over the old logits; -inf without any.
        right: (n,) the right class's logit for examples of old classes, 0 for the others.
        best: (n,) largest old logit.
        known: (n,) whether that is the right class's.
        gaps: (n,) sum over the old logits of (logit - indicator of the class)^2.
        weights: (n,) what each counts, adding up to 1.
    """

    features: Tensor
    labels: Tensor
    counts: Tensor
    target: Tensor
    rest: Tensor
    right: Tensor
    best: Tensor
    known: Tensor
    gaps: Tensor
    weights: Tensor

    @property
    def old(self) -> Tensor:
        """(n,) which examples are of old classes."""
        return self.target < 0

    def alike(self) -> Scene:
        """Returns the same with every example counting alike, whatever its class."""
        return replace(self, weights=self.counts / self.counts.sum())

    def losses(self, logits: Tensor, kind: str = "ce") -> Tensor:
        """Returns the loss (n,) of each example with new logits (n, k): cross-entropy, or half the squared error."""
        own = logits.gather(1, self.target.clamp(min=0)[:, None])[:, 0]
        if kind == "mse":
            return 0.5 * (self.gaps + logits.square().sum(1) + torch.where(self.old, 0, 1 - 2 * own))
        return torch.logaddexp(self.rest, logits.logsumexp(1)) - torch.where(self.old, self.right, own)

    def loss(self, logits: Tensor, kind: str = "ce") -> float:
        """Returns the mean loss with new logits (n, k)."""
        return float(self.weights @ self.losses(logits, kind))

    def hits(self, logits: Tensor) -> Tensor:
        """Returns which examples (n,) are told right with new logits (n, k), by the largest logit."""
        top, at = logits.max(1)
        return torch.where(self.old, self.known & (self.best >= top), (at == self.target) & (top > self.best))

    def share(self, hits: Tensor, side: Tensor) -> float | None:
        """Returns the share of hits among some examples, classes counting alike; None without such examples."""
        total = float(self.weights[side].sum())
        return float(self.weights[side] @ hits[side].double()) / total if total > 0 else None


def scene(
    examples: tuple[Tensor, Tensor, Tensor],
    logits: Callable[[Tensor], Tensor],
    new: Sequence[int],
    classes: int,
    *,
    new_share: float | None = 0.5,
) -> Scene:
    """Returns what new rows meet.

    Args:
        examples: features (n, d), classes (n,), and how often each counts (n,).
        logits: the head's, (n, classes) of features (n, d).
        new: ids of the new rows.
        classes: number of rows.
        new_share: weight of the new classes together, classes counting alike on their side; None: every example
            counts alike.
    """
    h, y, counts = examples[0].double(), examples[1], examples[2].double()
    place = torch.full((classes,), -1, device=y.device)
    place[list(new)] = torch.arange(len(new), device=y.device)
    fresh = place >= 0
    target = place[y]
    columns: list[tuple[Tensor, ...]] = []
    chunk = max(1, _CHUNK // classes)
    for part, label in zip(torch.split(h, chunk), torch.split(y, chunk), strict=True):
        made = logits(part)
        own = made.gather(1, label[:, None])[:, 0]
        of_old = ~fresh[label]
        gaps = made.masked_fill(fresh, 0).square().sum(1) + torch.where(of_old, 1 - 2 * own, 0)
        made = made.masked_fill(fresh, -torch.inf)
        best, at = made.max(1)
        columns.append((made.logsumexp(1), torch.where(of_old, own, 0), best, at == label, gaps))
    rest, right, best, known, gaps = (torch.cat(column) for column in zip(*columns, strict=True))
    weights = _weights(y, counts, target >= 0, classes, new_share)
    return Scene(h, y, counts, target, rest, right, best, known, gaps, weights)


def _weights(y: Tensor, counts: Tensor, fresh: Tensor, classes: int, new_share: float | None) -> Tensor:
    """Returns what every example counts: the sides by the share, and within them classes alike."""
    if new_share is None:
        return counts / counts.sum()
    each = counts / counts.new_zeros(classes).index_add_(0, y, counts)[y]
    for side, share in ((fresh, new_share), (~fresh, 1 - new_share)):
        total = each[side].sum()
        if float(total) > 0:
            each = torch.where(side, each * share / total, each)
    return each / each.sum()
