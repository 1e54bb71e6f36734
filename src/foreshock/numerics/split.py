"""Losses of rows of logits whose classes are split between ranks, with their derivatives; what is summed, and when."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from foreshock import distributed
from foreshock.distributed import Group
from foreshock.errors import UsageError
from foreshock.numerics.layout import working_dtype
from foreshock.numerics.rows import parts

__all__ = ["Losses"]

NAME = "parallel_cross_entropy"


class Losses(Function):
    """(logits, target, weight, ...) of this rank -> losses, weights of the right classes, and what `_Gradient` needs.

    Of that, `facts` are, by row: the largest logit, the sum of the wrong exponentials, that of the right class, the sum
    of the targets, the sum of the wrong classes' targets.
    """

    @staticmethod
    def forward(
        logits: Tensor, target: Tensor, weight: Tensor | None, ignore_index: int, smoothing: float, group: Group
    ) -> Any:
        kind, (n, classes) = working_dtype(logits.dtype), logits.shape
        rank, ranks = distributed.place(group)
        extremes = logits.new_zeros(n + ranks, dtype=kind)
        extremes[:n] = logits.amax(1) if classes else -torch.inf
        extremes[n + rank] = classes
        distributed.max_(extremes, group)
        top, sizes = extremes[:n].unsqueeze(1), extremes[n:].long()
        kept, valid, index, here = _places(target.unsqueeze(1), ignore_index, sizes, rank)
        each = smoothing / extremes[n:].sum()

        weight = logits.new_ones(classes, dtype=kind) if weight is None else weight.to(kind)
        spread = (weight * each).unsqueeze(0) if smoothing else None
        sums = logits.new_zeros(4, n, 1, dtype=kind)
        wrong, away, factor, below = sums
        factor += _take(weight.expand(n, classes), index, here)
        for part in _parts(logits):
            gap = top[part] - logits[part].to(kind)
            away[part] = _take(gap, index[part], here[part])
            if spread is not None:
                below[part] = (gap * spread).sum(1, keepdim=True)
            e = gap.neg_().exp_()
            wrong[part] = _put(e, index[part], here[part], 0.0).sum(1, keepdim=True)
        whole = sums.new_zeros(1) if spread is None else spread.sum().reshape(1)
        packed = distributed.sum_(torch.cat([sums.flatten(), whole]), group)
        (wrong, away, factor, below), whole = packed[:-1].view_as(sums), packed[-1]

        away = torch.where(valid, away, torch.nan)
        own, others = (-away).exp(), whole - factor * each
        total = factor * (1 - smoothing) + whole
        found = total * (wrong + (-away).expm1()).log1p() + factor * (1 - smoothing) * away + below
        facts = torch.stack([top, wrong, own, total, others])
        return torch.where(kept, found, 0.0), torch.where(kept, factor, 0.0), facts, spread, kept, index, here

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.group = inputs[-1]
        ctx.mark_non_differentiable(*(each for each in output[1:] if each is not None))
        ctx.save_for_backward(inputs[0], *output[2:])

    @staticmethod
    def backward(ctx: Any, outer: Tensor, *_: Any) -> Any:
        logits, *rest = ctx.saved_tensors
        found = _Gradient.apply(logits, outer, *rest, ctx.group)  # type: ignore[no-untyped-call]
        return found, None, None, None, None, None


class _Gradient(Function):
    """(this rank's logits, outer, ...) -> this rank's gradient of sum(outer * losses)."""

    @staticmethod
    def forward(
        logits: Tensor, outer: Tensor, facts: Tensor, spread: Tensor | None, kept: Tensor, index: Tensor, here: Tensor,
        group: Group,
    ) -> Tensor:  # fmt: skip
        top, wrong, own, total, others = facts
        outer = torch.where(kept, outer, 0.0)
        share = outer * total / (wrong + own)
        found = torch.empty_like(logits)
        right = outer * others - share * wrong
        for part in _parts(logits):
            e = (logits[part].to(facts.dtype) - top[part]).exp_()
            g = e.mul_(share[part])
            if spread is not None:
                g.addcmul_(outer[part], spread, value=-1)
            found[part] = _put(g, index[part], here[part], right[part])
        return found

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        *tensors, ctx.group = inputs
        ctx.save_for_backward(*tensors)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        if torch.is_grad_enabled():
            tensors = (*ctx.saved_tensors, grad)
            return *_Last.apply(*tensors, ctx.group), *[None] * 6  # type: ignore[no-untyped-call]
        return *_product(ctx.saved_tensors, grad, ctx.group), *[None] * 6


class _Last(Function):
    """`_product`, of which there is no derivative."""

    @staticmethod
    def forward(*inputs: Any) -> Any:
        *tensors, along, group = inputs
        return _product(tensors, along, group)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *_: Any) -> Any:
        raise UsageError(f"{NAME} can be differentiated twice, and a third derivative was asked for: gather the logits "
                         "and use cross_entropy, which has them all")


def _product(saved: Sequence[Any], along: Tensor, group: Group) -> tuple[Tensor, Tensor]:
    """Returns the derivatives of <gradient, along>, summed over the ranks, by this rank's logits and by outer.

    With u_k the direction less that of the right class: outer Y p_k (u_k - sum_j p_j u_j), and Y sum_j p_j u_j less the
    sum of the targets times u.
    """
    logits, outer, facts, spread, kept, index, here = saved
    top, wrong, own, total, _ = facts
    along = along.to(facts.dtype)
    moved = along - distributed.sum_(_take(along, index, here), group)
    p = (logits.to(facts.dtype) - top).exp_() / (wrong + own)
    sums = torch.zeros_like(facts[:2])
    sums[0] = (p * moved).sum(1, keepdim=True)
    if spread is not None:
        sums[1] = (spread * moved).sum(1, keepdim=True)
    mean, targets = distributed.sum_(sums, group)
    to_logits = torch.where(kept, outer * total, 0.0) * p * (moved - mean)
    return to_logits.to(logits.dtype), torch.where(kept, total * mean - targets, 0.0)


def _parts(logits: Tensor) -> Iterator[slice]:
    """Yields slices of the rows that fit into the cache."""
    return (slice(None) if part is None else part for part in parts(logits))


def _places(target: Tensor, ignore_index: int, sizes: Tensor, rank: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns of each row: whether it counts, may have its target, its class's place on this rank, if it is there."""
    kept = target != ignore_index
    valid = ~kept | ((target >= 0) & (target < sizes.sum()))
    if target.device.type == "cpu" and not bool(valid.all()):
        raise UsageError(
            f"{NAME}(target=...): class index {int(target[~valid][0])} is out of range: the ranks have "
            f"{' + '.join(map(str, sizes.tolist()))} classes, so 0 to {int(sizes.sum()) - 1}, and ignore_index is "
            f"{ignore_index}"
        )
    index = target - sizes[:rank].sum()
    here = kept & (index >= 0) & (index < sizes[rank])
    return kept, valid, torch.where(here, index, 0), here


def _take(values: Tensor, index: Tensor, here: Tensor) -> Tensor:
    """Returns the right class's value of each row where this rank has it, 0 elsewhere."""
    if not values.shape[1]:
        return torch.zeros_like(index, dtype=values.dtype)
    return torch.where(here, values.gather(1, index), 0.0)


def _put(values: Tensor, index: Tensor, here: Tensor, new: Tensor | float) -> Tensor:
    """Writes the right class's value of each row where this rank has it, and returns the values."""
    if values.shape[1]:
        values.scatter_(1, index, torch.where(here, new, values.gather(1, index)))
    return values
