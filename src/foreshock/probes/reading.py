"""One reading of chi: the operator of the step about to be taken, its top eigenpair, and which tensors hold it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature import Diagonal, EigResult, Operator, eigsh
from foreshock.curvature.directional import Directional, directional
from foreshock.errors import UsageError
from foreshock.stability import EdgeWeights, planned_step


@dataclass(slots=True)
class Reading:
    """What one look at the curvature found.

    Attributes:
        chi: top eigenvalue of W^(1/2) (H + l2) W^(1/2); the edge is 1.
        threshold: of S = lambda_max(P^-1 (H + l2)), chi = S / threshold; with several in the parameter groups, the one
            that the top eigenvector feels: 1 / sum_i u_i^2 / threshold_i.
        max_stable_lr: learning rate (of the first group, the others in proportion) at which chi would be 1; infinite
            where no curvature is positive.
        residual: |A u - chi u|: an eigenvalue lies within it of chi.
        converged: whether chi is within the tolerance, by its own estimate.
        matvecs: products used, those of the directional forms among them.
        formal: the optimizer's steps are bounded whatever the gradient: chi is no alarm.
        floored: share of the top eigenvector on coordinates whose denominator is hardly more than eps.
        shares: id of a parameter -> share of the top eigenvector on it.
        forms: curvature along gradient and step, where asked for.
        found: the eigenpair, for a warm start.
    """

    chi: float
    threshold: float
    max_stable_lr: float
    residual: float
    converged: bool
    matvecs: int
    formal: bool
    floored: float
    shares: dict[int, float]
    forms: Directional | None
    found: EigResult

    @property
    def sharpness(self) -> float:
        """S, the preconditioned sharpness."""
        return self.chi * self.threshold


def read(
    operator: Operator,
    weights: EdgeWeights,
    optimizer: Optimizer,
    *,
    tol: float,
    warm_start: EigResult | None = None,
    along: Sequence[Tensor | None] | None = None,
) -> Reading:
    """Returns chi of the step that the optimizer is about to take.

    Args:
        operator: the Hessian of the loss that it minimises (or climbs), on those of its parameters that are trained.
        weights: of that step, on all of its parameters.
        optimizer: left as it is.
        tol: relative error wanted of chi.
        warm_start: of an earlier reading on the same batch.
        along: gradients of that step, one for each of its parameters, to measure the curvature along gradient and step
            as well: two products, and a step of a copy.

    Raises:
        UsageError: curvature that is not finite.
    """
    place = {id(param): i for i, param in enumerate(weights.params)}
    chosen = [place[id(param)] for param in operator.params]
    if weights.maximize:
        operator = -operator
    decays = [weights.l2[i] for i in chosen]
    if any(decays):
        operator = operator + Diagonal(operator.params, decays)
    mine = [weights.tensors[i] for i in chosen]
    found = eigsh(operator.conditioned(mine), tol=tol, warm_start=warm_start)
    chi = float(found.values[0])
    floored = weights.floored
    squares = [piece.double() ** 2 for piece in found.vectors[0]]
    masses = torch.stack([square.sum() for square in squares]).tolist()
    dead = torch.stack([(square * floored[i]).sum() for square, i in zip(squares, chosen, strict=True)]).sum()
    felt = sum(mass * weights.factors[i] for mass, i in zip(masses, chosen, strict=True))
    decoupled = sum(mass * weights.lrs[i] * weights.omega[i] for mass, i in zip(masses, chosen, strict=True))
    forms = None if along is None else _along(operator, weights, optimizer, along, found.directions[0])
    return Reading(
        chi, 1 / felt if felt > 0 else math.inf, _max_stable_lr(optimizer, chi, decoupled), float(found.residuals[0]),
        bool(found.converged[0]), found.matvecs + (forms.matvecs if forms else 0), weights.formal, float(dead),
        {id(param): mass for param, mass in zip(operator.params, masses, strict=True)}, forms, found,
    )


def _along(
    operator: Operator, weights: EdgeWeights, optimizer: Optimizer, grads: Sequence[Tensor | None], top: list[Tensor]
) -> Directional:
    """Returns the forms P, S and U; U only of optimizers that a copy can take the step of."""
    place = {id(param): i for i, param in enumerate(weights.params)}
    chosen = [place[id(param)] for param in operator.params]
    sign = -1.0 if weights.maximize else 1.0
    gradient = []
    for i in chosen:
        param, grad = weights.params[i].detach(), grads[i]
        gradient.append(weights.l2[i] * param + (0.0 if grad is None else sign * grad.detach()))
    try:
        moves = planned_step(optimizer, grads)
    except UsageError:
        moves = None
    mine = [weights.tensors[i] for i in chosen]
    step = None if moves is None else [moves[i] for i in chosen]
    return directional(operator, mine, gradient, step=step, top=top)


def _max_stable_lr(optimizer: Optimizer, chi: float, decoupled: float) -> float:
    """Returns the first group's learning rate at which chi would be 1, from chi being k lr / (2 - lr omega).

    Args:
        decoupled: lr omega, as the top eigenvector feels it.
    """
    if not chi > 0:
        return math.inf
    return float(optimizer.param_groups[0].get("lr", math.nan)) * 2 / (chi * (2 - decoupled) + decoupled)
