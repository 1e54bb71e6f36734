"""What is changed in trainings on modular arithmetic: the loss, the precision, or the direction of the gradient."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from foreshock.numerics.cross_entropy import cross_entropy

__all__ = ["ARMS", "Arm", "perpendicular_", "stablemax_cross_entropy"]


def stablemax_cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean of -log(s(z_r) / sum_k s(z_k)), s(x) = x + 1 from 0 on and 1 / (1 - x) below it, in nats.

    A softmax whose exponential grows as a line: no gap of logits leaves the others' sum below an ulp of the right
    class's, and no row is ever learnt for good.

    Args:
        logits: (n, K).
        labels: (n,) right classes.

    Source: Prieto et al. 2025, arXiv 2501.04697 (StableMax).

    >>> round(stablemax_cross_entropy(torch.tensor([[2.0, 0.0]]), torch.tensor([0])).item(), 5)  # -log(3/4)
    0.28768
    """
    sizes = torch.where(logits >= 0, logits + 1, 1 / (1 - logits.clamp(max=0)))
    right = sizes.gather(1, labels.unsqueeze(1)).squeeze(1)
    return (sizes.sum(dim=1).log() - right.log()).mean()


def perpendicular_(params: Iterable[Tensor]) -> None:
    """Takes from each tensor's gradient, in place, what lies along the tensor; its length stays.

    g - (w.g / w.w) w, rescaled to |g|. What lies along w makes logits larger and changes no answer, if biases are left
    aside. Of a gradient along w alone, as of a tensor with one element, nothing is left.

    Args:
        params: with gradients, or without, which are passed over.

    Source: Prieto et al. 2025, arXiv 2501.04697 (perpGrad).
    """
    for param in params:
        if param.grad is None:
            continue
        weight, gradient = param.detach(), param.grad
        square = weight.square().sum()
        along = torch.where(square > 0, (weight * gradient).sum() / square, 0.0)
        left = gradient - along * weight
        length, kept = gradient.norm(), left.norm()
        gradient.copy_(left * torch.where(kept > torch.finfo(kept.dtype).eps * length, length / kept, 0.0))


@dataclass(frozen=True, slots=True)
class Arm:
    """One training: name and title, its loss of (logits, labels), the type of all numbers, and whether gradients are
    made perpendicular to their tensors before the step."""

    name: str
    title: str
    loss: Callable[[Tensor, Tensor], Tensor] = functional.cross_entropy
    dtype: torch.dtype = torch.float32
    perpendicular: bool = False


ARMS = {
    arm.name: arm
    for arm in (
        Arm("stock", "float32, torch's loss"),
        Arm("float64", "float64 throughout", dtype=torch.float64),
        Arm("exact", "float32, exact loss", cross_entropy),
        Arm("stablemax", "float32, StableMax", stablemax_cross_entropy),
        Arm("perpendicular", "float32, perpendicular gradient", perpendicular=True),
    )
}
