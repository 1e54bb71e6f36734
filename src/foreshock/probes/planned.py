"""The gradients of the step about to be taken, as far as they are known before it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.stability.twins import parameters

SCALED = 32.0
"""Factors on a loss from here on are the scale of a GradScaler; below they are part of what is minimised."""


def trained(params: Sequence[Tensor]) -> list[Tensor]:
    """Returns those that require gradients."""
    return [param for param in params if param.requires_grad and param.is_floating_point()]


def factor(weights: Sequence[float]) -> float:
    """Returns what multiplies the mean of a step's losses, given what backward multiplied each with the step before.

    >>> factor([0.25] * 4), factor([1.0, 1.0]), factor([65536.0]), factor([])
    (1.0, 2.0, 1.0, 1.0)
    """
    return sum(weights) if weights and max(weights) < SCALED else 1.0


def expected(
    new: Sequence[Tensor], so_far: Sequence[Tensor | None], weights: Sequence[float], place: int
) -> list[Tensor]:
    """Returns the gradient of the step once this loss has been differentiated, if it is the last one.

    Args:
        new: gradient of this loss.
        so_far: what earlier micro-batches of the step have left in `.grad`.
        weights: what backward multiplied the losses of the step before with; empty where that is not known.
        place: of this loss among those of its step. In the first place nothing is taken from `so_far`, which then is
            the step before's, not yet cleared; nor under a GradScaler, whose units `.grad` is in.
    """
    if not weights or max(weights) >= SCALED:
        return list(new)
    share = weights[min(place, len(weights) - 1)]
    if place == 0:
        return list(new) if share == 1.0 else [grad * share for grad in new]
    return [
        grad * share if old is None or old.is_sparse else torch.add(old.detach(), grad, alpha=share)
        for grad, old in zip(new, so_far, strict=True)
    ]


def consumed(optimizer: Optimizer) -> list[Tensor | None]:
    """Returns the gradients that an optimizer has just taken a step with."""
    return [None if param.grad is None else param.grad.detach() for param in parameters(optimizer)]


def about_to_be_consumed(optimizer: Optimizer) -> list[Tensor | None]:
    """Returns the gradients that an optimizer is taking, before the step: a fused one has still to divide them by its
    GradScaler's factor, which it does in place."""
    scale, grads = getattr(optimizer, "grad_scale", None), consumed(optimizer)
    return grads if scale is None else [None if grad is None else grad / scale for grad in grads]


def length(grads: Sequence[Tensor | None]) -> float:
    """Returns the Euclidean norm of gradients."""
    dense = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads if grad is not None]
    sizes = [torch.linalg.vector_norm(grad.float() if grad.element_size() < 4 else grad).double() for grad in dense]
    return float(torch.linalg.vector_norm(torch.stack(sizes))) if sizes else 0.0


def rates(optimizer: Optimizer) -> list[float]:
    """Returns the learning rates of the groups that can be read without waiting for a device, NaN for others."""
    found = [group.get("lr", math.nan) for group in optimizer.param_groups]
    return [math.nan if isinstance(rate, Tensor) and rate.device.type != "cpu" else float(rate) for rate in found]
