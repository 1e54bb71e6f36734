"""Where an optimizer keeps the second moments that its denominators are made of, and how they are raised in place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock import distributed
from foreshock.curvature import Edge
from foreshock.errors import UsageError
from foreshock.stability import EdgeWeights
from foreshock.stability.blocks import RotatedBlock
from foreshock.stability.group import host
from foreshock.stability.parts import Parts
from foreshock.stability.twins import members

__all__ = ["Denominator", "denominators", "raised", "write"]

HIGHEST, AVERAGE, SUM, LARGEST = "max_exp_avg_sq", ("exp_avg_sq", "square_avg"), "sum", "exp_inf"
NOWHERE = Parts(1.0, 0.0)
SCALED = frozenset({"LAMB", "Lamb", "FusedLAMB"})  # a smaller step of some entries lengthens that of all others
ROUNDING = 8.0  # units in the last place by which a root that stays may seem to have grown


@dataclass(frozen=True, slots=True)
class Denominator:
    """P = front (root + eps) of one parameter in the step about to be taken, and the moment that the root comes from.

    Attributes:
        place: of the parameter in `EdgeWeights.params`.
        masses: shares u_i^2 of the unstable direction, (n,), which add up to the tensor's share of it.
        root: as the step would have it, (n,).
        front, eps: what makes P of the root.
        inside: root over the square root of the second moment; over the moment itself where `squared` is False.
        factor: W P, see `EdgeWeights`.
        store: the optimizer's own tensor, written to in place.
        keep: part of it that is left when the step's gradient enters; 0 where it is a maximum over all steps.
        squared: whether the moment is one of squares, that gradients add to; else it is a maximum of absolute values.
    """

    place: int
    masses: Tensor
    root: Tensor
    front: float
    eps: float
    inside: float
    factor: float
    store: Tensor
    keep: float
    squared: bool = True

    @property
    def P(self) -> Tensor:  # noqa: N802  (the field's name)
        """Returns the denominators, (n,)."""
        return (self.root + self.eps) * self.front


def denominators(edge: Edge, optimizer: Optimizer | Sequence[Optimizer]) -> tuple[list[Denominator], float, list[str]]:
    """Returns what can be raised, the share of the edge on all else, and the names of the optimizers that hold it.

    Raises:
        UsageError: an optimizer has not taken a step yet, or does not hold the parameters of the reading.
    """
    owners = {
        id(param): (each, group) for each in members(optimizer) for group in each.param_groups
        for param in group["params"]
    }
    weights, found, fixed, others = edge.weights, [], 0.0, dict[str, None]()
    place = {id(param): i for i, param in enumerate(weights.params)}
    for param, y, share in zip(edge.params, edge.vector, edge.shares, strict=True):
        if id(param) not in owners:
            raise UsageError("optimizer: it does not hold the parameters of this reading; give the one that was read")
        owner, group = owners[id(param)]
        usable = share > 0 and SCALED.isdisjoint(kind.__name__ for kind in type(owner).__mro__)
        cell = _cell(weights, place[id(param)], y, share, owner.state.get(param) or {}, group) if usable else None
        if cell is not None:
            found.append(cell)
        elif share > 0:
            fixed += share
            others[type(owner).__name__] = None
    return found, fixed, list(others)


def _cell(
    weights: EdgeWeights, i: int, y: Tensor, share: float, state: Mapping[str, Any], group: Mapping[str, Any]
) -> Denominator | None:
    """Returns the denominator of one parameter, None where it has no second moment of its own in a known place."""
    weight, factor = weights.tensors[i], weights.factors[i]
    if not factor or not isinstance(weight, (Tensor, RotatedBlock)):
        return None
    store, parts, inside, keep = _moment(state, group, weights.parts[i], weights.corrections[i])
    w = distributed.whole(weight.diagonal if isinstance(weight, RotatedBlock) else weight).reshape(-1)
    if store is None or store.numel() != w.numel():
        return None
    way = distributed.whole(y)
    along = (weight.coordinates(way.to(w.dtype)) if isinstance(weight, RotatedBlock) else way.to(w.dtype)).reshape(-1)
    squares = torch.where(w > 0, along.square() / w, 0.0)
    masses = squares * (share / squares.sum(dtype=torch.float64).clamp(min=torch.finfo(w.dtype).tiny)).to(w.dtype)
    P = torch.where(w > 0, factor / w, 1.0)
    root = (P / parts.front - parts.eps).clamp(min=0.0)
    linear = store is state.get(LARGEST)
    return Denominator(i, masses, root, parts.front, parts.eps, inside, factor, store, keep, not linear)


def _moment(
    state: Mapping[str, Any], group: Mapping[str, Any], parts: Parts | None, correction: float
) -> tuple[Tensor | None, Parts, float, float]:
    """Returns the stored moment with what P is made of, root over sqrt(v), and what of v the next step keeps."""
    if isinstance(state.get(LARGEST), Tensor):  # u = max(beta2 u, |g| + eps): eps is no part of P, which is front u
        return state[LARGEST], Parts(correction, 0.0), 1.0, float(host([group["betas"][1]])[0])
    if parts is None:
        return None, NOWHERE, 1.0, 1.0
    highest, fading = state.get(HIGHEST), parts.fading
    if group.get("amsgrad") and isinstance(highest, Tensor):
        beta2, step = host([group["betas"][1], state["step"]])
        return highest, parts, (1 - beta2 ** (step + 1)) ** -0.5, 0.0
    kept = next((state[name] for name in AVERAGE if isinstance(state.get(name), Tensor)), None)
    if kept is not None and fading is not None:
        return kept, parts, fading.inside(fading.step), fading.beta2
    if kept is not None and group.get("centered"):
        return kept, parts, 1.0, float(host([group["alpha"]])[0])
    if isinstance(state.get(SUM), Tensor):
        return state[SUM], parts, 1.0, 1.0
    return None, NOWHERE, 1.0, 1.0


def raised(weights: EdgeWeights, cells: Sequence[Denominator]) -> EdgeWeights:
    """Returns weights with the denominators of some cells in place of their own."""
    tensors = list(weights.tensors)
    for cell in cells:
        old, new = tensors[cell.place], cell.factor / cell.P
        if isinstance(old, RotatedBlock):
            dead = old.diagonal.reshape(-1) == 0
            tensors[cell.place] = replace(old, diagonal=new.masked_fill_(dead, 0.0).reshape(old.diagonal.shape))
        elif isinstance(old, Tensor):
            dead = distributed.whole(old).reshape(-1) == 0
            tensors[cell.place] = new.masked_fill_(dead, 0.0).reshape(old.shape)
    return replace(weights, tensors=tensors)


@torch.no_grad()
def write(before: Denominator, after: Denominator) -> None:
    """Raises the stored moment so that the step's own root, its gradient taken in, is that of `after`.

    v_t = keep v_{t-1} + new g^2 is linear in v_{t-1}: what v_t is to grow by is added to v_{t-1} over `keep`, whatever
    the gradient. Entries whose root stays are left alone, bit for bit.
    """
    grown = after.root > before.root * (1 + ROUNDING * torch.finfo(before.root.dtype).eps)
    if before.keep and before.squared:
        more = (after.root - before.root) * (after.root + before.root) / (before.inside**2 * before.keep)
        change = torch.where(grown, more, 0.0)
        before.store.add_(_like(change, before.store))
        return
    moment = after.root / before.keep if not before.squared else (after.root / before.inside).square()
    wanted = torch.where(grown, moment, 0.0)  # a maximum: what is below the stored one changes nothing
    before.store.copy_(torch.maximum(before.store, _like(wanted, before.store)))


def _like(flat: Tensor, store: Tensor) -> Tensor:
    """Returns a flat tensor in the shape, type and shards of a stored one."""
    shaped = flat.reshape(store.shape).to(store.dtype)
    if not distributed.sharded(store):
        return shaped.to(store.device)
    from torch.distributed.tensor import distribute_tensor

    placed: Any = store
    made: Tensor = distribute_tensor(shaped, placed.device_mesh, placed.placements, src_data_rank=None)
    return made
