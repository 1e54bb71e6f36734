"""What a loop has told of the step it is about to take: its losses, what backward weighs them with, its data."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

PARTS = 8  # of a batch that are looked at: a list of ten thousand texts has no tensor in it


class Attempt:
    """The step that is about to be taken, or refused; `drop` makes room for the next.

    Attributes:
        losses: detached, one for each micro-batch so far.
        weights: what the backward pass of each multiplied it with, in order of the passes that have begun.
        last_weights: those of the attempt before.
        batch, closure: whatever was last given to `observe`.
        sizes: examples in the batch that came with each loss, NaN where none did.
        marks: signals that whoever changed the training wrote down for this attempt, such as `batch_switched`.
        prepared: whether the work before the update has been done.
        refused: whether the optimizer's step is called without gradients, so that it stands still.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.weights: list[tuple[Tensor, ...]] = []
        self.last_weights: tuple[Tensor, ...] = ()
        self.batch: Any = None
        self.closure: Callable[..., Any] | None = None
        self.sizes: list[float] = []
        self.marks: dict[str, float] = {}
        self.prepared = self.refused = False
        self._seen: weakref.ref[Tensor] | None = None

    def told(self, closure: Callable[..., Any] | None, batch: Any) -> None:
        """Takes what came with a loss."""
        self.batch = batch if batch is not None else self.batch
        self.closure = closure if closure is not None else self.closure

    def take(self, loss: Tensor, batch: Any) -> None:
        """Takes a loss, detached, and how many examples it is of."""
        self.losses.append(loss)
        self.sizes.append(math.nan if batch is None else examples(batch))

    def repeats(self, loss: Tensor) -> bool:
        """Returns whether this very loss was the last one; takes note of it."""
        if self._seen is not None and self._seen() is loss:
            return True
        self._seen = weakref.ref(loss)  # not its id, which the next loss may have
        return False

    def weigh(self, loss: Tensor) -> None:
        """Asks to be told what backward multiplies the loss with: accumulation and loss scale."""
        if loss.grad_fn is not None:
            loss.grad_fn.register_prehook(self.weights.append)

    def loss(self) -> Tensor | None:
        """Returns the mean of the losses, () on their device; None where there is none."""
        if len(self.losses) < 2:
            return self.losses[0] if self.losses else None
        first = self.losses[0].device
        wide = torch.float64 if first.type != "mps" else None
        return torch.stack([loss.to(first, wide) for loss in self.losses]).mean()

    def signals(self, host: dict[str, float], device: dict[str, Tensor], *, taken: bool = False) -> None:
        """Writes `loss`, `micro_batches`, `batch_size` where every loss came with a batch, `loss_scale` where taken."""
        loss = self.loss()
        if loss is not None:
            device["loss"] = loss
        host.update(self.marks)
        host["micro_batches"] = float(len(self.losses))
        size = sum(self.sizes)
        if size > 0:
            host["batch_size"] = size
        if taken and self.weights:
            weights = [weight for weight, *_ in self.weights]
            device["loss_scale"] = weights[0] if len(weights) == 1 else torch.stack(weights).sum()

    def vanished(self, optimizer: Optimizer) -> bool:
        """Returns whether the backward passes ran and their gradients are gone, without a step."""
        if not (self.losses and self.weights):
            return False
        return all(param.grad is None for group in optimizer.param_groups for param in group["params"])

    def drop(self) -> None:
        """Forgets all but the weights, which the next attempt will probably have as well."""
        if self.weights:
            self.last_weights = tuple(weight for weight, *_ in self.weights)
        self.losses, self.weights, self.sizes, self.marks, self._seen = [], [], [], {}, None
        self.batch = self.closure = None
        self.prepared = self.refused = False


def examples(batch: Any, depth: int = 4) -> float:
    """Returns the examples in a batch, the leading dimension of the first tensor or array in it; NaN without one.

    Args:
        batch: a tensor, or tuples, lists and mappings of them.
        depth: how deep they may be nested.

    >>> examples({"ids": torch.zeros(32, 128), "mask": None}), examples((torch.zeros(8, 3), torch.zeros(8)))
    (32.0, 8.0)
    """
    shape = getattr(batch, "shape", None)
    if shape is not None:
        return float(shape[0]) if len(shape) else math.nan
    if depth and isinstance(batch, (tuple, list, Mapping)):
        for part in islice(batch.values() if isinstance(batch, Mapping) else batch, PARTS):
            found = examples(part, depth - 1)
            if found == found:
                return found
    return math.nan
