"""What a reading of the edge foretells of the loss: its numbers, gathered for `stability.foresight`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature.edge import Edge, minimised
from foreshock.curvature.mode import Piece, mode_of
from foreshock.stability.blocks import RotatedBlock
from foreshock.stability.foresight import Outlook, Refill, outlook
from foreshock.stability.twins import members

__all__ = ["foretell", "refill_of"]


def foretell(
    edge: Edge, grads: Sequence[Tensor | None], optimizer: Optimizer | Sequence[Optimizer], *, loss: float,
    drift: float = 0.0,
) -> Outlook | None:
    """Returns how far the loss will rise and when, from one reading; None where its motion or the loss say nothing.

    Args:
        edge: the reading.
        grads: gradients that the step consumes, for all parameters of the optimizer.
        optimizer: what it is a reading of.
        loss: at the same point, on the same batch; it must be positive, since rises are ratios.
        drift: change of ln chi per step that is not the denominators' doing.

    See `stability.foresight` for what is left out.

    >>> w = torch.tensor([1.0], dtype=torch.float64, requires_grad=True)
    >>> optimizer = torch.optim.SGD([w], lr=2.5)
    >>> from foreshock.curvature import edge
    >>> foretell(edge(lambda: 0.5 * w[0] ** 2 + 1, optimizer), [w.detach()], optimizer, loss=1.5)
    Outlook(rise=inf, steps=2, peak=19)
    """
    if not (0.0 < loss < math.inf and math.isfinite(edge.mode_loss) and 0.0 < edge.chi < math.inf):
        return None
    share = min(1.0, edge.mode_loss / loss)  # more than all of it can only be the cubic part
    momentum = _momentum(edge, optimizer)
    return outlook(edge.chi, share, momentum=momentum, refill=refill_of(edge, grads), drift=drift)


def refill_of(edge: Edge, grads: Sequence[Tensor | None]) -> Refill | None:
    """Returns how the gradient at hand feeds the second moments at the edge; None where none decay.

    With a_i = u_i^2 root_i/(root_i + eps), the part of -d ln chi that follows d ln sqrt(v_i), the means over a_i of
    g_i^2/v_i: of the motion along the top eigenvector, g_i = u_i c / sqrt(W_i) with c^2 = 2 chi mode_loss, and of the
    rest of g.

    Args:
        edge: the reading.
        grads: for all parameters of the optimizer.
    """
    weights = edge.weights
    place = {id(param): i for i, param in enumerate(weights.params)}
    mode = mode_of(edge)
    sums, forgets, age = [], 0.0, 0.0
    motion = 2.0 * edge.chi * edge.mode_loss
    for piece in mode.pieces:
        fading = piece.parts.fading
        if fading is None or not 0.0 < fading.beta2 < 1.0:
            continue
        i = place[id(piece.param)]
        gradient, weight = minimised(weights, i, grads[i]), weights.tensors[i]
        if isinstance(weight, RotatedBlock):
            gradient = weight.coordinates(gradient)
        gradient = gradient.double().reshape(-1)
        found = _sums(piece, gradient, weights.factors[i], motion, fading.inside(fading.step) ** 2)
        sums.append(found)
        total = float(found[0])
        forgets += total * math.log(fading.beta2)
        corrected = abs(fading.inside(fading.step) - fading.inside(math.inf)) > 1e-12
        age += total * (fading.step if corrected else math.inf)
    if not sums:
        return None
    share, along, whole = torch.stack(sums).sum(0).tolist()
    if not share > 0.0:
        return None
    return Refill(
        math.exp(forgets / share), along / share, max(0.0, whole - along) / share, age / share, min(1.0, share)
    )


def _sums(piece: Piece, gradient: Tensor, factor: float, motion: float, inside: float) -> Tensor:
    """Returns the sums over one tensor of a_i, and of a_i g_i^2/v_i for the motion's and for the whole gradient."""
    P, masses = piece.denominators, piece.masses
    root = (P / piece.parts.front - piece.parts.eps).clamp(min=0.0)
    follows = masses * root / (root + piece.parts.eps).clamp(min=torch.finfo(P.dtype).tiny)
    v = root.square() / inside
    fed = torch.where(v > 0, follows / v, 0.0)
    along = fed * masses * (motion / factor) * P  # u_i^2 c^2 / W_i, and W_i = factor / P_i
    return torch.stack([follows.sum(), along.sum(), (fed * gradient.square()).sum()])


def _momentum(edge: Edge, optimizer: Optimizer | Sequence[Optimizer]) -> float:
    """Returns the momentum of the group that holds most of the edge."""
    most = edge.params[max(range(len(edge.shares)), key=edge.shares.__getitem__)]
    for each in members(optimizer):
        for group in each.param_groups:
            if any(param is most for param in group["params"]):
                return _momentum_of(group)
    return 0.0


def _momentum_of(group: dict[str, Any]) -> float:
    betas = group.get("betas")
    value = betas[0] if isinstance(betas, (tuple, list)) and betas else group.get("momentum", group.get("beta1", 0.0))
    number = float(value) if isinstance(value, (int, float, Tensor)) else 0.0
    return number if 0.0 <= number < 1.0 else 0.0
