"""How far an optimizer is from its edge of stability on a loss, and in which direction: chi and what belongs to it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature.directional import directional
from foreshock.curvature.eigs import EigResult, solve
from foreshock.curvature.hessian import Hessian
from foreshock.curvature.loss_curvature import LossCurvature
from foreshock.curvature.operator import Diagonal, Operator
from foreshock.errors import UsageError
from foreshock.stability import EdgeWeights, edge_weights, planned_step
from foreshock.stability.twins import members

MAX_MATVECS = 100  # products after which a reading is given as it is, not converged
AMPLIFIED = 1000.0  # see `convergence.Hidden`


@dataclass(frozen=True, slots=True)
class Edge:
    """The edge of stability of an optimizer at one point of its training; every chi has its edge at 1.

    Attributes:
        chi: top eigenvalue of W^(1/2) (H + l2) W^(1/2): the step about to be taken is unstable on the local quadratic
            just when it is above 1.
        threshold: of S = lambda_max(P^-1 (H + l2)); with several in the parameter groups, the one that the top
            eigenvector feels, 1 / sum_i u_i^2 / threshold_i.
        max_stable_lr: learning rate of the first group, the others in proportion, at which chi would be 1 with the
            same denominators; infinite where no curvature is positive, NaN where that rate is 0 just now.
        chi_gradient: form P, g'W H g / g'g (Bai et al. 2025, arXiv 2506.04805).
        chi_gradient_sym: form S, (Wg)'H(Wg) / g'Wg, never above chi.
        chi_step: form U, delta'H delta / (-2 g'delta) of the step about to be taken; NaN where it goes uphill.
        change: g'delta + delta'H delta / 2, the loss change that this step will make, to second order.
        alignment: |cos| of W^(1/2) g and the top eigenvector. The last five are NaN where `forms` was False.
        mode_loss: (u . W^(1/2) g)^2 / (2 chi), the part of the loss that is motion along the top eigenvector, to second
            order; NaN where chi is not above 0 or no gradient is known.
        lowest: the lowest eigenvalue the same products saw: an upper bound of the true one; negative curvature below
            minus the decay is unstable at any learning rate, and not part of chi.
        residual: |A u - chi u|: an eigenvalue lies within it of chi.
        error: estimated error of chi.
        converged: whether that is within the tolerance.
        matvecs: products used, those of the directional forms among them.
        vector: the direction in parameters, W^(1/2) u, of unit length, tensors shaped like `params`.
        params: the parameters that the reading is about: those of the optimizer that are trained.
        weights: W, of all parameters of the optimizer.
        shares: sum of u_i^2 over each of them, which says which tensor is at the edge; adds up to 1.
        floored: the same sum over coordinates whose denominator is hardly more than eps, wherever they are.
        loss: of the batch that the reading belongs to; NaN where it is not known.
        formal: the optimizer's steps are bounded whatever the gradient (sign, polar): chi is no alarm there, see
            `generalized_sharpness`.
        approximate: the second moment forgets fast, so that the edge lies somewhat above 1.
        notes: how the products were obtained, which batch they belong to, and what a reader has to know.
    """

    chi: float
    threshold: float
    max_stable_lr: float
    chi_gradient: float
    chi_gradient_sym: float
    chi_step: float
    change: float
    alignment: float
    mode_loss: float
    lowest: float
    residual: float
    error: float
    converged: bool
    matvecs: int
    vector: list[Tensor] = field(repr=False)
    params: tuple[Tensor, ...] = field(repr=False)
    weights: EdgeWeights = field(repr=False)
    shares: tuple[float, ...] = field(repr=False)
    floored: float
    loss: float
    formal: bool
    approximate: bool
    notes: tuple[str, ...] = field(repr=False)
    found: EigResult = field(repr=False)

    @property
    def sharpness(self) -> float:
        """S = lambda_max(P^-1 (H + l2)), the preconditioned sharpness: chi times the threshold."""
        return self.chi * self.threshold


def edge(
    loss: Tensor | Callable[[], Tensor] | tuple[Tensor, Callable[[], Tensor]] | LossCurvature,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    tol: float = 1e-2,
    warm_start: Edge | EigResult | Sequence[Tensor] | None = None,
    forms: bool = True,
    max_norm: float | None = None,
) -> Edge:
    """Returns how far the step that an optimizer is about to take is from its edge of stability on a loss.

    Nothing is changed: not the parameters, the optimizer, the gradients in `.grad`, random numbers or buffers; a live
    loss stays usable for its `backward()`, and must not have had it yet. The gradient of this loss goes into the
    denominators, as it will when the optimizer steps.

    Args:
        loss: the loss with its graph, a function that computes it, or both as (loss, function), see `Hessian`; or an
            operator on the optimizer's trained parameters: a `Hessian` of a whole data set or one that replays its
            random numbers, a `GaussNewton`.
        optimizer: any that `edge_weights` can read, or several over different parameters.
        tol: relative error wanted of chi.
        warm_start: an earlier reading on the same batch, or its direction in parameters.
        forms: whether to measure along the gradient and the step too: two products, and a step of a copy.
        max_norm: the gradient is going to be clipped to this norm.

    Raises:
        UsageError: what `Hessian` or `edge_weights` cannot read, and curvature that is not finite.

    Source: Cohen et al. 2022, arXiv 2207.14484; the normalisation to 1 and mixed optimizers are this library's.

    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> found = edge(lambda: 2.5 * w[0] ** 2 + 0.5 * w[1] ** 2, torch.optim.SGD([w], lr=0.5))
    >>> round(found.chi, 4), round(found.sharpness, 3), found.threshold, round(found.max_stable_lr, 3)
    (1.25, 5.0, 4.0, 0.4)
    """
    if not 0.0 < tol < 1.0:
        raise UsageError(f"edge(tol=...): a relative error between 0 and 1 is needed, got {tol!r}")
    curvature = loss if isinstance(loss, LossCurvature) else Hessian(loss, trained(optimizer))
    with nullcontext() if curvature is loss else curvature:
        grads = every_gradient(optimizer, curvature)
        weights = edge_weights(optimizer, grads, max_norm=max_norm)
        warm = [] if warm_start is None else [_direction(warm_start)]
        return read_edge(curvature, weights, optimizer, tol=tol, warm=warm, forms=forms, grads=grads)


def trained(optimizer: Optimizer | Sequence[Optimizer]) -> list[Tensor]:
    """Returns the parameters of one or several optimizers that require gradients, group after group.

    Raises:
        UsageError: there are none, or it is no optimizer.
    """
    groups = [group for each in members(optimizer) for group in each.param_groups]
    params = [param for group in groups for param in group["params"] if param.requires_grad]
    if not params:
        raise UsageError("optimizer: none of its parameters requires a gradient, so there is no curvature to measure")
    return params


def every_gradient(optimizer: Optimizer | Sequence[Optimizer], curvature: LossCurvature) -> list[Tensor | None]:
    """Returns the gradient of the operator's loss for each parameter of the optimizer, None for those not trained."""
    known = {id(param): grad for param, grad in zip(curvature.params, curvature.gradient(), strict=True)}
    return [
        None if id(param) not in known else known[id(param)].to(param.dtype)
        for each in members(optimizer) for group in each.param_groups for param in group["params"]
    ]


def read_edge(
    operator: Operator,
    weights: EdgeWeights,
    optimizer: Optimizer | Sequence[Optimizer],
    *,
    tol: float,
    warm: Sequence[Sequence[Tensor]] = (),
    forms: bool = True,
    grads: Sequence[Tensor | None] | None = None,
    generator: torch.Generator | None = None,
    amplified: float = AMPLIFIED,
) -> Edge:
    """Returns the edge that an operator and weights describe; `edge` is made of this.

    Args:
        operator: Hessian of the loss that the optimizer minimises (or climbs), on those parameters that are trained.
        weights: of the step about to be taken, on all parameters of the optimizer.
        optimizer: left as it is.
        tol: relative error wanted of chi.
        warm: directions in parameters to begin with.
        forms: whether to measure along the gradient and the step, where `grads` are given.
        grads: of that step, for all parameters of the optimizer.
        generator: source of random directions.
        amplified: see `convergence.Hidden`.
    """
    place = {id(param): i for i, param in enumerate(weights.params)}
    try:
        chosen = [place[id(param)] for param in operator.params]
    except KeyError as error:
        raise UsageError("operator: it is on a parameter that the optimizer does not hold") from error
    plain = operator
    if weights.maximize:
        operator = -operator
    decays = [weights.l2[i] for i in chosen]
    if any(decays):
        operator = operator + Diagonal(operator.params, decays)
    mine = [weights.tensors[i] for i in chosen]
    conditioned = operator.conditioned(mine)
    if generator is None:
        generator = torch.Generator(operator.device).manual_seed(0)
    found = solve(
        conditioned, 1, "LA", tol=tol, generator=generator, max_matvecs=MAX_MATVECS, amplified=amplified,
        warm=[conditioned.from_parameters(operator.space.take(direction)) for direction in warm],
    )
    chi = float(found.values[0])
    squares = [piece.double() ** 2 for piece in found.vectors[0]]
    sums = torch.stack([square.sum() for square in squares])
    masks = weights.floored
    dead = torch.stack([(square * masks[i]).sum() for square, i in zip(squares, chosen, strict=True)]).sum()
    masses = sums.tolist()
    felt = sum(mass * weights.factors[i] for mass, i in zip(masses, chosen, strict=True))
    decoupled = sum(mass * weights.lrs[i] * weights.omega[i] for mass, i in zip(masses, chosen, strict=True))
    direction = found.directions[0]
    length = float(torch.stack([piece.double().square().sum() for piece in direction]).sum().sqrt()) or 1.0
    along = _NO_FORMS
    if forms and grads is not None:
        along = _along(operator, weights, optimizer, chosen, grads, direction)
    return Edge(
        chi=chi,
        threshold=1.0 / felt if felt > 0 else math.inf,
        max_stable_lr=_max_stable_lr(optimizer, chi, decoupled),
        chi_gradient=along[0],
        chi_gradient_sym=along[1],
        chi_step=along[2],
        change=along[3],
        alignment=along[4],
        mode_loss=_mode_loss(weights, chosen, grads, direction, chi),
        lowest=found.extent[0],
        residual=float(found.residuals[0]),
        error=float(found.errors[0]),
        converged=bool(found.converged[0]),
        matvecs=found.matvecs + along[5],
        vector=[piece / length for piece in direction],
        params=operator.params,
        weights=weights,
        shares=tuple(masses),
        floored=float(dead),
        loss=float(getattr(plain, "loss", math.nan)),
        formal=weights.formal,
        approximate=weights.approximate,
        notes=(*found.notes, *weights.notes),
        found=found,
    )


_NO_FORMS = (math.nan, math.nan, math.nan, math.nan, math.nan, 0)


def _along(
    operator: Operator, weights: EdgeWeights, optimizer: Optimizer | Sequence[Optimizer],
    chosen: Sequence[int], grads: Sequence[Tensor | None], top: Sequence[Tensor],
) -> tuple[float, float, float, float, float, int]:
    """Returns the forms P, S and U, the change to second order, the alignment, and the products used."""
    gradient = [minimised(weights, i, grads[i]) for i in chosen]
    try:
        moves = planned_step(optimizer, grads)
    except UsageError:  # an optimizer that a copy cannot take the step of
        moves = None
    step = None if moves is None else [moves[i] for i in chosen]
    found = directional(operator, [weights.tensors[i] for i in chosen], gradient, step=step, top=top)
    return (
        found.chi_gradient, found.chi_gradient_sym, found.chi_step, found.change, found.alignment, found.matvecs
    )


def minimised(weights: EdgeWeights, place: int, grad: Tensor | None) -> Tensor:
    """Returns the gradient of what is minimised: g, or -g where the optimizer climbs, plus l2 theta."""
    l2, param, sign = weights.l2[place], weights.params[place].detach(), -1.0 if weights.maximize else 1.0
    if grad is None:
        return l2 * param
    dense = grad.detach().to_dense() if grad.is_sparse else grad.detach()
    return torch.add(sign * dense, param, alpha=l2) if l2 else sign * dense


def _mode_loss(
    weights: EdgeWeights, chosen: Sequence[int], grads: Sequence[Tensor | None] | None, top: Sequence[Tensor],
    chi: float,
) -> float:
    """Returns (u . W^(1/2) g)^2 / (2 chi), `top` being W^(1/2) u."""
    if grads is None or not chi > 0:
        return math.nan
    sums = [
        (piece.double() * minimised(weights, i, grads[i]).double()).sum()
        for piece, i in zip(top, chosen, strict=True)
    ]
    return float(torch.stack(sums).sum()) ** 2 / (2 * chi)


def _max_stable_lr(optimizer: Optimizer | Sequence[Optimizer], chi: float, decoupled: float) -> float:
    """Returns the first group's learning rate at which chi would be 1, from chi being k lr / (2 - lr omega).

    Args:
        decoupled: lr omega, as the top eigenvector feels it.
    """
    first = members(optimizer)[0]
    lr = float(first.param_groups[0].get("lr", math.nan))
    below = chi * (2.0 - decoupled) + decoupled
    if not lr > 0.0:
        return math.nan
    return lr * 2.0 / below if chi > 0.0 and below > 0.0 else math.inf


def _direction(given: Edge | EigResult | Sequence[Tensor]) -> Sequence[Tensor]:
    if isinstance(given, Edge):
        return given.vector
    return given.directions[0] if isinstance(given, EigResult) else given
