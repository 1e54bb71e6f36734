"""What would have kept chi below the edge: another learning rate, eps, or a floor; and when it will be reached.

With u the unit top eigenvector of W^(1/2) H W^(1/2), other denominators P' and H >= 0,

    chi' >= chi sum_i u_i^2 P_i/P'_i

since H is at least its part in that mode. Solved for equality with kappa this gives the smallest change that could do;
another mode may take over, so that chi' comes out some per cent higher, more so the larger the change: `verified`
measures it. Exact with one parameter, for a learning rate, and where all denominators scale alike.

Source: the rank-one bound is derived from Bai et al. 2025, arXiv 2506.04805, whose eps it asks for.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature.condensed import condensed
from foreshock.curvature.edge import Edge, read_edge
from foreshock.curvature.mode import Mode
from foreshock.curvature.operator import Operator
from foreshock.errors import UsageError
from foreshock.stability import EdgeWeights
from foreshock.stability.blocks import RotatedBlock
from foreshock.stability.twins import members

KAPPA = 0.9  # chi to aim at: a tenth below the edge, more than a reading's error and a step's growth
CLOSE = 1e-4  # relative error of chi where it is measured with a change made
ROUNDS = 12  # of going on from what a change has led to, each of which closes most of the gap
FURTHEST = 1 << 24  # steps beyond which nobody waits for the edge


@dataclass(frozen=True, slots=True)
class Counterfactual:
    """What would keep chi at kappa, each change alone and all else equal.

    Attributes:
        chi: as it is.
        kappa: as it is to be.
        lr: learning rate of the first group, the others in proportion; exact. Infinite where no curvature is positive.
        eps: for all groups that have less; their own where chi is not above kappa. None where there is no such eps.
        floor: least denominator P, where P = floor in all entries below; 0 where chi is not above kappa, None where
            no entry has a second moment.
        eps_crit: eps from which on chi cannot reach 1 whatever the second moments do; None without lambda_max(H), and
            where some tensor moves without an eps.
        notes: why something is None.
    """

    chi: float
    kappa: float
    lr: float
    eps: float | None
    floor: float | None
    eps_crit: float | None
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Verified:
    """chi as measured with a change made.

    Attributes:
        change: "lr", "eps" or "floor".
        value: what it is set to.
        chi: measured with it.
        predicted: what the rank-one bound said of the first value tried: never above that value's chi where H >= 0.
        rounds: readings taken.
        matvecs: products they took.
        edge: the last of them.
    """

    change: str
    value: float
    chi: float
    predicted: float
    rounds: int
    matvecs: int
    edge: Edge = field(repr=False)


def counterfactual(
    edge: Edge, optimizer: Optimizer | Sequence[Optimizer], *, kappa: float = KAPPA, top: float | None = None
) -> Counterfactual:
    """Returns the learning rate, the eps and the floor on denominators that would bring chi to kappa.

    Args:
        edge: a reading.
        optimizer: what it is a reading of.
        kappa: chi wanted.
        top: lambda_max(H), not preconditioned, for `eps_crit`.

    Raises:
        UsageError: kappa is not positive.

    >>> import torch
    >>> from foreshock.curvature import edge
    >>> w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    >>> found = counterfactual(edge(lambda: 5 * w[0] ** 2, optimizer := torch.optim.Adagrad([w], lr=4.0)), optimizer)
    >>> round(found.chi, 6), round(found.lr, 6), round(found.eps, 6), round(found.floor, 6)
    (2.0, 1.8, 12.222222, 22.222222)
    """
    if not 0 < kappa < math.inf:
        raise UsageError(f"counterfactual(kappa=...): a positive number is needed, got {kappa!r}")
    mode, target = condensed(edge), _target(edge, kappa)
    eps = floor = None
    notes: list[str] = []
    if not mode.movable:
        notes.append("no tensor has a denominator root + eps, so that neither an eps nor a floor can be told")
    elif mode.fixed >= target:
        notes.append(f"tensors without such a denominator hold {mode.fixed:.0%} of the edge: no eps can do it")
    else:
        eps, floor = mode.eps(target), mode.floor(target)
    crit = None if top is None else _eps_crit(edge.weights, float(top))
    if top is not None and crit is None:
        notes.append("some tensor moves without an eps: none can keep chi below 1 whatever happens")
    return Counterfactual(edge.chi, kappa, _rate(edge, optimizer, kappa), eps, floor, crit, tuple(notes))


def steps_to_edge(edge: Edge) -> int | None:
    """Returns the steps until chi is 1 if second moments decayed freely and H stood still; None if nothing will do it.

    The smallest k with chi sum_i u_i^2 P_i(0)/P_i(k) >= 1, P_i(k) being the denominator after k steps without
    gradients, bias corrections, eps and all. 0 where chi is 1 or more. Exact with one parameter; chi is at least that
    where H >= 0, so it may be reached before, never later.

    >>> import torch
    >>> from foreshock.curvature import edge
    >>> w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    >>> steps_to_edge(edge(lambda: w[0] ** 2, torch.optim.RMSprop([w], lr=0.05)))
    276
    """
    mode = condensed(edge)
    if not edge.chi > 0 or not mode.fades:
        return None
    if edge.chi >= 1:
        return 0
    needed = 1.0 / edge.chi
    if mode.faded(FURTHEST) < needed:
        return None
    ahead = 1
    while mode.faded(ahead) < needed:
        ahead *= 2
    below, above = ahead // 2, ahead  # while a bias correction of the momentum fades chi falls first, then only rises
    low, high = mode.faded(below), mode.faded(above)
    while above - below > 1:
        middle = _between(below, above, low, high, needed)
        value = mode.faded(middle)
        if value >= needed:
            above, high = middle, value
        else:
            below, low = middle, value
    return above


def _between(below: int, above: int, low: float, high: float, needed: float) -> int:
    """Returns where a straight line through the logarithms meets what is needed, kept within the middle of a bracket.

    The growth is nearly exponential in the steps, so that this is right or one off after two or three trials.
    """
    width = above - below
    if not (math.isfinite(high) and high > low > 0) or width < 4:
        return below + width // 2
    at = width * math.log(needed / low) / math.log(high / low)
    return below + min(max(math.floor(at), 1, width // 64), width - 1, width - width // 64)


def verified(
    edge: Edge, optimizer: Optimizer | Sequence[Optimizer], operator: Operator, change: Literal["lr", "eps", "floor"],
    *, value: float | None = None, kappa: float = KAPPA,
) -> Verified:
    """Returns chi as measured with a change made to the optimizer's weights; nothing of the optimizer is touched.

    Without a value it is the one of `counterfactual`, and is then enlarged until the chi that is measured is at most
    kappa; see `Verified.rounds`.

    Args:
        edge: a reading.
        optimizer: what it is a reading of.
        operator: the H of that reading: of the same loss at the same parameters.
        change: what is changed.
        value: what it is changed to, and measured once.
        kappa: chi wanted.

    Raises:
        UsageError: there is no such change, see `Counterfactual`.
    """
    if change not in ("lr", "eps", "floor"):
        raise UsageError(f"verified(change=...): one of lr, eps, floor, got {change!r}")
    wanted = _wanted(edge, edge, optimizer, change, kappa) if value is None else value
    predicted = edge.chi * _predicted(edge, optimizer, change, wanted)
    now, rounds, matvecs = edge, 0, 0
    while True:
        weights = changed(edge.weights, change, wanted / _first_lr(optimizer) if change == "lr" else wanted)
        now = read_edge(operator, weights, optimizer, tol=CLOSE, warm=[now.vector], forms=False)
        rounds, matvecs = rounds + 1, matvecs + now.matvecs
        if value is not None or now.chi <= kappa or rounds == ROUNDS:
            return Verified(change, wanted, now.chi, predicted, rounds, matvecs, now)
        wanted = _wanted(now, edge, optimizer, change, kappa * (1 - 4 * CLOSE))


def changed(weights: EdgeWeights, change: Literal["lr", "eps", "floor"], value: float) -> EdgeWeights:
    """Returns weights as they would be with another eps, with a floor on P, or with all learning rates multiplied.

    Groups whose eps is larger already keep it; tensors without a denominator front (root + eps) keep theirs.

    Args:
        weights: as they are.
        change: which of them.
        value: the eps, the floor, or the factor of the learning rates.
    """
    tensors, factors, lrs, parts = list(weights.tensors), list(weights.factors), list(weights.lrs), list(weights.parts)
    floors = list(weights.floors)
    for i, (weight, factor, made_of) in enumerate(zip(tensors, factors, parts, strict=True)):
        if change == "lr":
            decay = lrs[i] * weights.omega[i]
            share = value * (2 - decay) / (2 - value * decay) if value * decay < 2 else math.inf
            factors[i], lrs[i] = factor * share, lrs[i] * value
            tensors[i] = weight * share if isinstance(weight, Tensor) else weight.reciprocal().reciprocal(share)
        elif made_of is not None and factor:
            added = made_of.front * max(value - made_of.eps, 0.0)
            floors[i] = max(floors[i], value) if change == "floor" else floors[i] + added
            if change == "eps":
                parts[i] = replace(made_of, eps=max(value, made_of.eps))
            if isinstance(weight, Tensor):
                tensors[i] = _weight(weight, change, factor, added, value)
            elif isinstance(weight, RotatedBlock):
                tensors[i] = replace(weight, diagonal=_weight(weight.diagonal, change, factor, added, value))
    return replace(
        weights, tensors=tensors, factors=tuple(factors), lrs=tuple(lrs), parts=tuple(parts), floors=tuple(floors)
    )


def _weight(weight: Tensor, change: str, factor: float, added: float, floor: float) -> Tensor:
    """Returns factor/P' for P = factor/weight."""
    if change == "floor":
        return weight.clamp(max=factor / floor) if floor > 0 else weight
    return weight / (1 + weight * (added / factor))


def _wanted(
    now: Edge, origin: Edge, optimizer: Optimizer | Sequence[Optimizer], change: str, kappa: float
) -> float:
    """Returns the value that should bring chi from where it is now to kappa."""
    if change == "lr":
        return _rate(origin, optimizer, kappa)
    mode, target = condensed(now), _target(now, kappa)
    if not mode.movable or mode.fixed >= target:
        raise UsageError(f"verified(change={change!r}): the tensors at the edge have no such denominator to change")
    return mode.eps(target) if change == "eps" else mode.floor(target)


def _target(edge: Edge, kappa: float) -> float:
    """Returns what sum_i u_i^2 P_i/P'_i has to be."""
    return kappa / edge.chi if edge.chi > 0 else math.inf


def _predicted(edge: Edge, optimizer: Optimizer | Sequence[Optimizer], change: str, value: float) -> float:
    """Returns chi'/chi of the rank-one bound."""
    if change == "lr":
        ratio, decay = value / _first_lr(optimizer), _decoupled(edge)
        return ratio * (2 - decay) / (2 - ratio * decay)
    mode: Mode = condensed(edge)
    measure: Callable[[float], float] = mode.with_eps if change == "eps" else mode.with_floor
    return measure(value)


def _first_lr(optimizer: Optimizer | Sequence[Optimizer]) -> float:
    return float(members(optimizer)[0].param_groups[0].get("lr", math.nan))


def _decoupled(edge: Edge) -> float:
    """Returns lr omega as the top eigenvector feels it."""
    weights = edge.weights
    place = {id(param): i for i, param in enumerate(weights.params)}
    return sum(
        share * weights.lrs[i] * weights.omega[i]
        for share, i in zip(edge.shares, (place[id(param)] for param in edge.params), strict=True)
    )


def _rate(edge: Edge, optimizer: Optimizer | Sequence[Optimizer], kappa: float) -> float:
    """Returns the first group's learning rate at which chi = k lr/(2 - lr omega) is kappa."""
    lr, decay = _first_lr(optimizer), _decoupled(edge)
    below = edge.chi * (2.0 - decay) + kappa * decay
    if not lr > 0.0:
        return math.nan
    return lr * 2.0 * kappa / below if edge.chi > 0.0 and below > 0.0 else math.inf


def _eps_crit(weights: EdgeWeights, top: float) -> float | None:
    """Returns the largest of lr q (lambda + l2)/((2 - lr omega) front): beyond it no W can lift chi to 1."""
    moving = [
        (factor, l2, made_of)
        for factor, l2, made_of in zip(weights.factors, weights.l2, weights.parts, strict=True) if factor
    ]
    if not moving or any(made_of is None for _, _, made_of in moving):
        return None
    return max(factor * (top + l2) / made_of.front for factor, l2, made_of in moving if made_of is not None)
