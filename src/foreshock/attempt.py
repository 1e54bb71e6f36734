"""What a loop has told of the step it is about to take: its losses, what backward weighs them with, its data."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Attempt:
    """The step that is about to be taken, or refused; `drop` makes room for the next.

    Attributes:
        losses: detached, one for each micro-batch so far.
        weights: what the backward pass of each multiplied it with, in order of the passes that have begun.
        last_weights: those of the attempt before.
        batch, closure: whatever was last given to `observe`.
        prepared: whether the work before the update has been done.
        refused: whether the optimizer's step is called without gradients, so that it stands still.
    """

    def __init__(self) -> None:
        self.losses: list[Tensor] = []
        self.weights: list[tuple[Tensor, ...]] = []
        self.last_weights: tuple[Tensor, ...] = ()
        self.batch: Any = None
        self.closure: Callable[..., Any] | None = None
        self.prepared = self.refused = False
        self._seen: weakref.ref[Tensor] | None = None

    def told(self, closure: Callable[..., Any] | None, batch: Any) -> None:
        """Takes what came with a loss."""
        self.batch = batch if batch is not None else self.batch
        self.closure = closure if closure is not None else self.closure

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

    def vanished(self, optimizer: Optimizer) -> bool:
        """Returns whether the backward passes ran and their gradients are gone, without a step."""
        if not (self.losses and self.weights):
            return False
        return all(param.grad is None for group in optimizer.param_groups for param in group["params"])

    def drop(self) -> None:
        """Forgets all but the weights, which the next attempt will probably have as well."""
        if self.weights:
            self.last_weights = tuple(weight for weight, *_ in self.weights)
        self.losses, self.weights, self._seen = [], [], None
        self.batch = self.closure = None
        self.prepared = self.refused = False
