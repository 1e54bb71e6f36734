"""The arms of the softmax-absorption reproduction: one training, each time with one thing changed."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.function import FunctionCtx
from torch.nn import functional
from torch.optim import Optimizer

from foreshock.numerics.cross_entropy import cross_entropy
from foreshock.numerics.margin import margin_cross_entropy
from foreshock.numerics.recentre import recentre_
from foreshock.numerics.repair import exact_gradient

__all__ = ["ARMS", "COLLAPSE", "HALF", "Arm", "Later", "collapsed", "row_centred"]

Loss = Callable[[Tensor, Tensor], Tensor]
"""Logits (rows, classes) and labels (rows,) -> mean loss."""

STEPS = 5000
HALF = 2600  # steps by which float32 has spiked twice at least
COLLAPSE = 24 * math.log(2)  # nats: log-odds beyond which float32 loses the right class's gradient, if all is one lump
CLAMP = 100.0  # nats below the largest logit; wrong classes underflow at 103.3
DESCENT = 800, 1e5  # step from which plain gradient descent takes over, and its learning rate


class Later(NamedTuple):
    """What changes on the way: from a step on another loss, or plain gradient descent at a learning rate."""

    step: int
    loss: Loss | None = None
    lr: float | None = None


@dataclass(frozen=True, slots=True)
class Arm:
    """One training.

    Attributes:
        name, title: for places on disk; for tables and figures.
        loss: of the logits in `dtype`.
        dtype: of parameters and data.
        settings: of Adam, besides lr 1e-3, betas (.9, .95), eps 1e-8; with `weight_decay` it is AdamW.
        hidden: widths of the hidden layers.
        afterwards: done to the head after every step.
        later: what changes on the way.
        steps: its own number.
    """

    name: str
    title: str
    loss: Loss = functional.cross_entropy
    dtype: torch.dtype = torch.float32
    settings: Mapping[str, Any] = field(default_factory=dict)
    hidden: tuple[int, ...] = (32, 32, 32)
    afterwards: Callable[[nn.Linear, Optimizer], None] | None = None
    later: Later | None = None
    steps: int = STEPS


class _RowCentred(torch.autograd.Function):
    """Hands logits on; of their gradient it takes away each row's mean."""

    @staticmethod
    def forward(ctx: FunctionCtx, logits: Tensor) -> Tensor:
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: FunctionCtx, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        return gradient - gradient.mean(dim=1, keepdim=True)


class _Collapsed(torch.autograd.Function):
    """Hands logits on; of rows whose log-odds are beyond the limit it removes the right class's gradient."""

    @staticmethod
    def forward(ctx: Any, logits: Tensor, labels: Tensor, limit: float) -> Tensor:
        place = labels.unsqueeze(1)
        wrong = logits.scatter(1, place, -math.inf).logsumexp(dim=1, keepdim=True)
        ctx.save_for_backward(place, logits.gather(1, place) - wrong > limit)
        return logits.view_as(logits)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        (gradient,) = gradients
        place, lost = ctx.saved_tensors
        return gradient.scatter(1, place, gradient.gather(1, place).masked_fill(lost, 0.0)), None, None


def row_centred(logits: Tensor, labels: Tensor) -> Tensor:
    """Returns the mean cross-entropy; g - mean_k g is what flows back to the logits (Liu et al., their projection).

    The right class of an absorbed row then gets -w/K in place of -w.
    """
    centred: Tensor = _RowCentred.apply(logits)  # type: ignore[no-untyped-call]
    return functional.cross_entropy(centred, labels)


def collapsed(logits: Tensor, labels: Tensor, limit: float = COLLAPSE) -> Tensor:
    """Returns the mean cross-entropy, its right-class gradient taken away where log-odds exceed `limit`, in nats.

    In float64 nothing else is rounded, so that what follows follows from the missing gradient alone.
    """
    handed: Tensor = _Collapsed.apply(logits, labels, limit)  # type: ignore[no-untyped-call]
    return functional.cross_entropy(handed, labels)


def _repaired(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(exact_gradient(logits, labels), labels)


def _wide(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits.double(), labels)


def _narrow(dtype: torch.dtype) -> Loss:
    return lambda logits, labels: functional.cross_entropy(logits.to(dtype), labels)


def _clamped(logits: Tensor, labels: Tensor) -> Tensor:
    floor = logits.detach().amax(dim=1, keepdim=True) - CLAMP
    return functional.cross_entropy(torch.maximum(logits, floor), labels)


def _smoothed(logits: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(logits, labels, label_smoothing=0.1)


def _recentre(head: nn.Linear, optimizer: Optimizer) -> None:
    recentre_(head.weight, head.bias)


_AT, _RATE = DESCENT
ARMS = {
    arm.name: arm
    for arm in (
        Arm("stock", "float32, torch's loss"),
        Arm("float64", "float64 throughout", dtype=torch.float64),
        Arm("exact", "float32, exact loss", cross_entropy),
        Arm("float64-logits", "float32, loss in float64", _wide),
        Arm("margin", "float32, margin form", margin_cross_entropy),
        Arm("repaired", "float32, repaired gradient", _repaired),
        Arm("row-centred", "float32, row-centred gradient", row_centred),
        Arm("re-centred", "float32, head re-centred", afterwards=_recentre),
        Arm("emulated", "float64, collapse emulated", collapsed, torch.float64),
        Arm("exact-later", "float32, exact loss from step 1000", later=Later(1000, loss=cross_entropy)),
        Arm("eps-1e-6", "float32, eps 1e-6", settings={"eps": 1e-6}),
        Arm("eps-1e-5", "float32, eps 1e-5", settings={"eps": 1e-5}),
        Arm("clamp", "float32, logits clamped", _clamped),
        Arm("decay-0.01", "float32, weight decay .01", settings={"weight_decay": 0.01}),
        Arm("decay-0.1", "float32, weight decay .1", settings={"weight_decay": 0.1}),
        Arm("smoothing", "float32, label smoothing .1", _smoothed),
        Arm("one-layer", "float32, one hidden layer", hidden=(32,)),
        Arm("bfloat16", "bfloat16 logits", _narrow(torch.bfloat16)),
        Arm("float16", "float16 logits", _narrow(torch.float16)),
        Arm("descent-stock", "torch's loss, GD from step 800", later=Later(_AT, lr=_RATE), steps=1200),
        Arm("descent-exact", "exact loss, GD from step 800", cross_entropy, later=Later(_AT, lr=_RATE), steps=1200),
        Arm("descent-margin", "margin form, GD from step 800", margin_cross_entropy, later=Later(_AT, lr=_RATE),
            steps=1200),
    )
}  # fmt: skip
"""By name. Liu et al. 2026, arXiv 2605.06152, study most of them; the margin form and the repair are ours."""
