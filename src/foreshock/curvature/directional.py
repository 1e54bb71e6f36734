"""Curvature along the gradient and along the step, scaled so that 1 is the edge: the forms P, S and U.

chi says how far the worst direction is from the edge; these say what the direction taken will do. What each costs:

    P = g'W H g / g'g                       one product, H(Wg), since P = g . H(Wg) / g.g
    S = (Wg)'H(Wg) / g'Wg                   the same product
    U = delta'H delta / (-2 g'delta)        another one, H delta; none where delta is a multiple of Wg

Sources: P is the gradient-directional curvature of Bai et al. 2025, arXiv 2506.04805, with the preconditioned Hessian
in the place of H. It is no Rayleigh quotient: it can be negative, or above chi. S is the quotient at W^(1/2) g, hence
never above chi, and without momentum the loss rises over the next step, to second order, just when S > 1. U takes
momentum in.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from foreshock.curvature.operator import Operator
from foreshock.curvature.space import dot, norm
from foreshock.errors import UsageError

Vector = Tensor | Sequence[Tensor]
PARALLEL = 1e-6  # |delta - c Wg| / |delta| below which U is taken from the product that P and S share


@dataclass(frozen=True, slots=True)
class Directional:
    """Curvature along gradient and step; every chi has its edge at 1. NaN where there is nothing to divide by.

    Attributes:
        chi_gradient: P.
        chi_gradient_sym: S.
        chi_step: U, where the step goes downhill; NaN where it does not, or where no step was given.
        slope: g . delta, the loss change that the slope alone foretells; NaN without a step, like the next two.
        bend: delta'H delta.
        change: slope + bend / 2, the loss change to second order: the loss will rise where it is above 0. This is form
            U as a sum, which also holds where the step goes uphill and the quotient means nothing.
        alignment: |cos| of W^(1/2) g with the top eigenvector, NaN without one.
        matvecs: products used.
    """

    chi_gradient: float
    chi_gradient_sym: float
    chi_step: float
    slope: float
    bend: float
    change: float
    alignment: float
    matvecs: int


def directional(
    operator: Operator, weights: Any, gradient: Vector | None = None, *, step: Vector | None = None,
    top: Vector | None = None,
) -> Directional:
    """Returns the forms P, S and, given the step, U: one product, or two with a step that has momentum in it.

    With coupled weight decay the operator is H + l2 I and the gradient g + l2 theta.

    Args:
        operator: H, in parameter coordinates.
        weights: W, of the step about to be taken: `EdgeWeights`, or a tensor or `Block` for each parameter.
        gradient: g; by default the one that the operator knows.
        step: delta = theta_{t+1} - theta_t, planned or taken.
        top: step in parameters that the top eigenvector of W^(1/2) H W^(1/2) stands for (`EigResult.directions`).

    Raises:
        UsageError: no gradient is given and the operator knows none.

    >>> import torch
    >>> from foreshock.curvature import ExplicitOperator
    >>> hessian = ExplicitOperator(torch.diag(torch.tensor([5.0, 1.0])))
    >>> gradient = torch.tensor([2.0, 0.0])
    >>> found = directional(hessian, [torch.tensor([0.25, 0.25])], gradient, step=-0.5 * gradient)
    >>> found.chi_gradient, found.chi_gradient_sym, found.chi_step, found.change, found.matvecs
    (1.25, 1.25, 1.25, 0.5, 1)
    """
    space = operator.space
    g = operator.start() if gradient is None else space.take(gradient)
    if g is None:
        raise UsageError(f"directional(operator, weights, gradient): {operator!r} knows no gradient; give it")
    conditioned = operator.conditioned(weights)
    before = operator.matvecs
    root = conditioned.root(g)
    preconditioned = conditioned.root(root)
    product = operator.multiply(preconditioned)
    along = dot(preconditioned, product)
    size = norm(root) ** 2
    slope = bend = change = quotient = alignment = math.nan
    if step is not None:
        delta = space.take(step)
        slope = dot(g, delta)
        bend = _bend(operator, delta, preconditioned, along)
        change = slope + bend / 2
        if slope < 0:
            quotient = bend / (-2 * slope)
    if top is not None:
        direction = space.take(top)
        # W^(1/2) g . u = g . W^(1/2) u, and the direction is W^(1/2) u of any length
        alignment = _ratio(abs(dot(g, direction)), math.sqrt(size) * norm(conditioned.inverse_root(direction)))
    return Directional(
        _ratio(dot(g, product), dot(g, g)), _ratio(along, size), quotient, slope, bend, change, alignment,
        operator.matvecs - before,
    )


def _bend(operator: Operator, delta: Tensor, preconditioned: Tensor, along: float) -> float:
    """Returns delta'H delta, given (Wg)'H(Wg)."""
    length = dot(preconditioned, preconditioned)
    if length > 0:
        factor = dot(preconditioned, delta) / length
        if norm(delta - factor * preconditioned) <= PARALLEL * norm(delta):
            return factor * factor * along
    return dot(delta, operator.multiply(delta))


def _ratio(top: float, bottom: float) -> float:
    return top / bottom if bottom > 0 else math.nan
