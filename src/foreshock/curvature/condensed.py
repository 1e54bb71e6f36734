"""The unstable mode over a few thousand classes of denominators: the same sums at a hundredth of the entries."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.edge import Edge
from foreshock.curvature.mode import Mode, Piece, mode_of
from foreshock.curvature.space import chunks
from foreshock.stability.blocks import RotatedBlock
from foreshock.stability.parts import Parts

CLASSES = 4096  # of ln P, each a few per cent wide at most: within one the mean stands for all, to about 1e-5


@dataclass(frozen=True, slots=True)
class _Entries:
    """One tensor of a reading: weights w = factor/P, the direction y in the same coordinates, its share of the mode."""

    param: Tensor
    w: Tensor
    y: Tensor
    factor: float
    share: float


def condensed(edge: Edge) -> Mode:
    """Returns the top mode of a reading with entries of nearly the same P, eps and bias corrections taken together.

    What is made of it, such as sum_i u_i^2 P_i/P'_i for some P', is off by about 1e-5 of itself, and not at all where
    all P are the same. Small problems are left as they are.
    """
    weights = edge.weights
    place = {id(param): i for i, param in enumerate(weights.params)}
    groups: dict[Parts, list[_Entries]] = {}
    fixed = 0.0
    for param, y, share in zip(edge.params, edge.vector, edge.shares, strict=True):
        i = place[id(param)]
        weight, made_of, factor = weights.tensors[i], weights.parts[i], weights.factors[i]
        if made_of is None or not factor or not share or not isinstance(weight, (Tensor, RotatedBlock)):
            fixed += share
        elif isinstance(weight, RotatedBlock):
            entries = _Entries(param, weight.diagonal, weight.coordinates(y), factor, share)
            groups.setdefault(made_of, []).append(entries)
        else:
            groups.setdefault(made_of, []).append(_Entries(param, weight, y, factor, share))
    if sum(each.w.numel() for group in groups.values() for each in group) <= 2 * CLASSES * max(1, len(groups)):
        return mode_of(edge)
    return Mode(tuple(_together(made_of, group) for made_of, group in groups.items()), fixed)


def _together(made_of: Parts, group: Iterable[_Entries]) -> Piece:
    """Returns the entries of some tensors as one piece of at most so many classes."""
    group = list(group)
    ends = torch.stack([_ends(each).to(group[0].w.device) for each in group])
    low, high = float(ends[:, 0].min()), float(ends[:, 1].max())
    scale = (CLASSES - 1) / (high - low) if high > low else 0.0
    total = torch.zeros(2, CLASSES, dtype=torch.float64, device=group[0].w.device)
    for each in group:
        sums = torch.zeros(2, CLASSES, dtype=torch.float64, device=each.w.device)
        for w, y in chunks(each.w, each.y):
            kept = w.clamp(min=_TINY)
            masses = y * y / kept
            at = (torch.log(kept).mul_(-scale) + (math.log(each.factor) - low) * scale).clamp_(0, CLASSES - 1).long()
            sums[0].index_add_(0, at, masses)
            sums[1].index_add_(0, at, masses / kept)
        total += (sums * (each.share / sums[0].sum().clamp(min=_TINY)) * sums.new_tensor([[1.0], [each.factor]])).to(
            total.device
        )
    used = total[0] > 0
    masses, weighted = total[0][used], total[1][used]
    return Piece(group[0].param, masses, weighted / masses, made_of)


_TINY = 1e-300


def _ends(entries: _Entries) -> Tensor:
    """Returns the least and the largest ln P, shape (2,), float64."""
    w = entries.w
    most = w.amax()
    least = torch.where(w > 0, w, most).amin()
    return math.log(entries.factor) - torch.log(torch.stack([most, least]).double().clamp(min=_TINY))
