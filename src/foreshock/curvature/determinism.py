"""Whether a closure computes the same loss each time, and what moves when it does not."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.dropout import _DropoutNd

from foreshock.curvature.anatomy import Anatomy
from foreshock.curvature.harmless import random_state, same_random_state
from foreshock.curvature.objective import Live, RandomState, Repeatable
from foreshock.errors import UsageError

MODES = ("check", "fix", "trust")

# How far two evaluations of one loss may be apart, in machine epsilons: sums in another order (a shuffled loader,
# atomic additions on an accelerator) are within this, one dropped unit is not.
_EPSILONS = 64
# and their gradients, relative to the batches' own
_TURNED = 1e-3


def prepare(objective: Repeatable, mode: str) -> RandomState:
    """Returns the state of the random streams before the first evaluation; with "fix" all will begin with it.

    Raises:
        UsageError: an unknown mode.
    """
    if mode not in MODES:
        raise UsageError(f"deterministic: one of {', '.join(MODES)}, got {mode!r}")
    before = random_state()
    if mode == "fix":
        objective.replayed = before
    return before


def verify(
    objective: Repeatable, before: RandomState, loss: float, gradient: Tensor, facts: Anatomy, mode: str
) -> list[str]:
    """Returns notes on how the loss repeats, after evaluating it a second time.

    Args:
        objective: has been evaluated once.
        before: the state of the random streams before that.
        loss: what it gave.
        gradient: that loss's, shape (n,); compared as well where random numbers are drawn.
        facts: what its graph is made of.
        mode: "check" refuses a loss that differs; "fix" has the random numbers replayed; "trust" looks at nothing.

    Raises:
        UsageError: the loss is another one each time, or batch normalisation takes its statistics from the batch.
    """
    if mode == "trust":
        objective.watched = False
        if objective.data is not None:
            objective.replayed = before
        return ["taken on trust: that the loss is the same each time was not checked"]
    notes = []
    objective.watched = False
    drawn = objective.after is not None and not same_random_state(before, objective.after)
    if facts.batch_statistics:
        names = ", ".join(moving_norms(objective.roots)) or "a batch normalisation"
        if mode == "check":
            raise UsageError(
                f"{names} is in train mode: the loss depends on the statistics of its batch, and each evaluation moves "
                "the running ones; call model.eval(), or pass deterministic='fix' for the curvature of this very "
                "batch, with the buffers put back"
            )
        notes.append(f"batch statistics of {names}: the curvature couples the samples of a batch; buffers are put back")
    other, turned = _second(objective, None if mode == "fix" else objective.after, gradient if drawn else None)
    if not apart(loss, other) <= tolerance(objective.params):
        raise UsageError(_reason(objective, loss, other, drawn, mode))
    if not turned <= _TURNED:
        raise UsageError(
            f"the closure is not deterministic: its loss repeats, its gradient differs by {turned:.1%}; it draws "
            "random numbers that its backward pass uses; pass deterministic='fix' to replay one draw"
        )
    if drawn and mode == "fix":
        notes.append("random numbers are drawn, and replayed: the curvature belongs to one draw of them")
    if objective.data is not None:
        objective.replayed = before  # the same order in each pass, whatever the caller draws in between
    return notes


def live_notes(objective: Live, facts: Anatomy) -> list[str]:
    """Returns what is to be known of a loss that was computed once, by somebody else."""
    notes = []
    dropping = ", ".join(dropping_modules(objective.roots))
    if facts.dropout or dropping:
        notes.append(
            f"dropout{f' ({dropping})' if dropping else ''} is active: a fixed mask, the one this loss had"
        )
    elif not objective.roots:
        notes.append("whatever random numbers this loss drew (dropout) are held at what they were")
    if facts.batch_statistics:
        notes.append("batch normalisation in train mode: the curvature couples the samples of this batch")
    return notes


def _second(objective: Repeatable, start: RandomState | None, gradient: Tensor | None) -> tuple[float, float]:
    """Returns the loss of another evaluation, and how far its gradient is from `gradient` (relative; 0 without one)."""
    losses: list[tuple[Tensor, float]] = []
    mean = None if gradient is None else torch.zeros_like(gradient)
    sizes: list[float] = []

    def visit(loss: Tensor, weight: float) -> None:
        losses.append((loss.detach(), weight))
        if mean is not None:
            found = torch.autograd.grad(loss, objective.leaves, allow_unused=True)
            parts = [torch.zeros_like(p) if g is None else g for g, p in zip(found, objective.leaves, strict=True)]
            flat = torch.cat([part.reshape(-1).to(mean) for part in parts])
            mean.add_(flat, alpha=weight)
            sizes.append(weight * float(flat.norm()))

    total = objective.sweep(visit, start=start)
    value = math.fsum(float(loss) * weight for loss, weight in losses) / total
    if mean is None or gradient is None:
        return value, 0.0
    return value, float((mean.div_(total) - gradient).norm()) / max(sum(sizes) / total, 1e-30)


def apart(a: float, b: float) -> float:
    """Returns the relative difference of two losses."""
    return abs(a - b) / max(abs(a), abs(b), 1e-30)


def tolerance(params: Sequence[Tensor]) -> float:
    """Returns how far apart two evaluations of one loss may be, relative."""
    return min(_EPSILONS * max(torch.finfo(param.dtype).eps for param in params), 0.01)


def _reason(objective: Repeatable, first: float, second: float, drawn: bool, mode: str) -> str:
    values = (
        f"the closure is not deterministic: it gave a loss of {first:.9g}, then {second:.9g} at the same parameters"
    )
    names = ", ".join(dropping_modules(objective.roots))
    if mode == "fix":
        return (
            f"{values}, although its random numbers were replayed and its modules' buffers put back: it keeps a state "
            "of its own (an iterator, a counter), or the data does; compute the loss of one fixed batch"
        )
    if names:
        return (
            f"{values}. Dropout is active ({names}); call model.eval(), or pass deterministic='fix' to replay one mask"
        )
    if drawn:
        return (
            f"{values}. It draws random numbers (dropout, augmentation, sampling); switch them off with model.eval(), "
            "or pass deterministic='fix' to replay one draw"
        )
    return (
        f"{values}, and draws no random numbers: its data moves on (next() on an iterator), or a state it keeps does; "
        "compute the loss of one fixed batch"
    )


def moving_norms(roots: Sequence[nn.Module]) -> Iterator[str]:
    """Yields the names of normalisations that take their statistics from the batch and keep running ones."""
    for name, module in _named(roots):
        if isinstance(module, _BatchNorm) and module.training:
            yield name


def dropping_modules(roots: Sequence[nn.Module]) -> Iterator[str]:
    """Yields the names of modules that drop units at random as they are."""
    for name, module in _named(roots):
        if not module.training:
            continue
        if (
            (isinstance(module, _DropoutNd) and module.p > 0)
            or (isinstance(module, nn.MultiheadAttention) and module.dropout > 0)
            or (isinstance(module, nn.RNNBase) and module.dropout > 0 and module.num_layers > 1)
        ):
            yield name


def _named(roots: Sequence[nn.Module]) -> Iterator[tuple[str, nn.Module]]:
    for root in roots:
        for name, module in root.named_modules():
            yield f"{name or 'model'} ({type(module).__name__})", module
