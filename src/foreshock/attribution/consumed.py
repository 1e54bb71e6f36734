"""What became of the batch's gradient before the optimizer consumed it: clipped, scaled, or something else."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.attribution.terms import Factor

__all__ = ["Scaling", "fitting", "scaling"]

# how far a consumed gradient may be from a multiple of the recomputed one: other kernels and orders of summation
CLOSE = 1e-3
# factors that are looked for, when the gradient consumed was not kept: from 1e-8 to 1e8
_DECADES, _PER_DECADE = 8, 4


@dataclass(frozen=True, slots=True)
class Scaling:
    """consumed = factor * recomputed + other.

    Attributes:
        factors: one for each tensor: a number, or entry by entry where values were clipped.
        whole: the one number for all tensors that fits best: 1 for a gradient as it is, less where it was clipped.
        other: |other| / |consumed|.
        how: "as it is", "scaled", "tensor by tensor", "values clipped", or "something else".
    """

    factors: tuple[Factor, ...]
    whole: float
    other: float
    how: str


def scaling(consumed: Sequence[Tensor | None], recomputed: Sequence[Tensor]) -> Scaling:
    """Returns by how much gradients were scaled: by one number, by one for each tensor, or by clipping values.

    >>> g = [torch.tensor([3.0, 4.0]), torch.tensor([12.0])]
    >>> found = scaling([each / 13.0 for each in g], g)
    >>> round(found.whole * 13.0, 6), found.how
    (1.0, 'scaled')
    >>> scaling([each.clamp(-3.5, 3.5) for each in g], g).how
    'values clipped'
    """
    pairs = [
        (None if c is None else c.detach().double(), r.detach().double())
        for c, r in zip(consumed, recomputed, strict=True)
    ]
    held = [(c, r) for c, r in pairs if c is not None]
    size = sum(float(c.square().sum()) for c, _ in held)
    cross = [0.0 if c is None else float((c * r).sum()) for c, r in pairs]
    squares = [0.0 if c is None else float(r.square().sum()) for c, r in pairs]
    whole = sum(cross) / sum(squares) if sum(squares) else 1.0
    if abs(whole - 1.0) <= CLOSE and _other(held, [1.0] * len(held), size) <= CLOSE:
        whole = 1.0
    other = _other(held, [whole] * len(held), size)
    if other <= CLOSE:
        return Scaling((whole,) * len(pairs), whole, other, "as it is" if whole == 1.0 else "scaled")
    each = [c / s if s else 1.0 for c, s in zip(cross, squares, strict=True)]
    apart = _other(held, [f for f, (c, _) in zip(each, pairs, strict=True) if c is not None], size)
    if apart <= CLOSE:
        return Scaling(tuple(each), whole, apart, "tensor by tensor")
    ratios = [torch.ones_like(r) if c is None else torch.where(r == 0, 1.0, c / r) for c, r in pairs]
    if all(bool(((ratio >= -CLOSE) & (ratio <= 1.0 + CLOSE)).all()) for ratio in ratios):
        inside = [ratio.clamp(0.0, 1.0) for ratio in ratios]
        left = _other(held, [f for f, (c, _) in zip(inside, pairs, strict=True) if c is not None], size)
        if left <= CLOSE:
            return Scaling(tuple(inside), whole, left, "values clipped")
    return Scaling((whole,) * len(pairs), whole, other, "something else")


def _other(pairs: Sequence[tuple[Tensor, Tensor]], factors: Sequence[Factor], size: float) -> float:
    gap = sum(float((c - r * f).square().sum()) for (c, r), f in zip(pairs, factors, strict=True))
    return math.sqrt(gap / size) if size else 0.0


def fitting(missed: Callable[[float], float], good: float) -> float:
    """Returns the factor of the gradient with which a rule misses least of the executed step.

    1 where that is good enough; else the best of a grid, refined by golden sections.

    Args:
        missed: what the rule misses, relative, by the factor.
        good: what counts as a fit.
    """
    if missed(1.0) <= good:
        return 1.0
    grid = [10.0 ** (i / _PER_DECADE) for i in range(-_DECADES * _PER_DECADE, _DECADES * _PER_DECADE + 1)]
    tried = [(missed(factor), factor) for factor in grid]
    _, best = min(tried)
    low, high = math.log(best) - math.log(10.0) / _PER_DECADE, math.log(best) + math.log(10.0) / _PER_DECADE
    golden = (math.sqrt(5.0) - 1.0) / 2.0
    for _ in range(40):
        left, right = high - golden * (high - low), low + golden * (high - low)
        if missed(math.exp(left)) < missed(math.exp(right)):
            high = right
        else:
            low = left
    return math.exp((low + high) / 2.0)
