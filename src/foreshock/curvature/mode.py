"""The unstable mode laid out over the entries of the denominators: what becomes of chi when those change."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.edge import Edge
from foreshock.stability.blocks import RotatedBlock
from foreshock.stability.parts import Parts

_AT_ONCE = 8  # iterations between two looks at whether they have converged, each of which waits for the device
_CLOSE = 1e-12  # relative distance from the target at which they have
_MOST = 400


@dataclass(frozen=True, slots=True)
class Piece:
    """The entries of one tensor: shares of the top eigenvector's square, shape (n,), and their P now."""

    param: Tensor
    masses: Tensor
    denominators: Tensor
    parts: Parts


@dataclass(frozen=True, slots=True)
class Mode:
    """sum_i u_i^2 P_i/P'_i as a function of what makes P' of P.

    Attributes:
        pieces: of the tensors with a denominator front (root + eps); float64.
        fixed: share of the top eigenvector on all others.
    """

    pieces: tuple[Piece, ...]
    fixed: float

    @property
    def movable(self) -> bool:
        """Returns whether any denominator has an eps."""
        return bool(self.pieces)

    @property
    def fades(self) -> bool:
        """Returns whether any denominator decays without gradients."""
        return any(piece.parts.fading for piece in self.pieces)

    def faded(self, steps: int) -> float:
        """Returns the sum for P' as it is so many steps later, if no gradient comes."""
        sums = []
        for piece in self.pieces:
            made_of, P = piece.parts, piece.denominators
            if made_of.fading is None:
                sums.append(piece.masses.sum())
                continue
            front, share = made_of.fading.after(steps)
            later = front * ((P / made_of.front - made_of.eps).clamp(min=0.0) * share + made_of.eps)
            sums.append(torch.where(piece.masses > 0, piece.masses * P / later, 0.0).sum())
        return self.fixed + float(torch.stack(sums).sum())

    def with_eps(self, eps: float) -> float:
        """Returns the sum for another eps, in those groups that have less."""
        sums = [
            (piece.masses / (1 + piece.parts.front * max(eps - piece.parts.eps, 0.0) / piece.denominators)).sum()
            for piece in self.pieces
        ]
        return self.fixed + float(torch.stack(sums).sum())

    def with_floor(self, floor: float) -> float:
        """Returns the sum for P' = max(P, floor)."""
        sums = [
            (piece.masses * (piece.denominators / floor).clamp(max=1.0)).sum() if floor > 0 else piece.masses.sum()
            for piece in self.pieces
        ]
        return self.fixed + float(torch.stack(sums).sum())

    def eps(self, target: float) -> float:
        """Returns the eps with which the sum is `target`; the least there is now where it is not below 1."""
        levels = sorted({piece.parts.eps for piece in self.pieces})
        if target >= 1.0:
            return levels[0]
        for level, limit in zip(levels, [*levels[1:], math.inf], strict=True):
            if limit < math.inf and self.with_eps(limit) > target:
                continue
            return level + self._added(level, target)
        raise AssertionError("the last level has no limit")

    def _added(self, level: float, target: float) -> float:
        """Returns what has to be added to the level by Newton's method on the reciprocal of the sum.

        1 over a sum of m/(1 + c x) is concave in x, so that tangents from the left stay left of the root; with one
        entry it is straight, and done in one step.
        """
        masses, slopes, still = [], [], self.fixed
        for piece in self.pieces:
            made_of = piece.parts
            if made_of.eps > level:
                still += float(piece.masses.sum())
                continue
            shift = made_of.front * (level - made_of.eps)
            masses.append(piece.masses * piece.denominators / (piece.denominators + shift))
            slopes.append(made_of.front / (piece.denominators + shift))
        m, c = torch.cat(masses), torch.cat(slopes)
        x = m.new_zeros(())
        for _ in range(_MOST // _AT_ONCE):
            for _ in range(_AT_ONCE):
                share = 1 / (1 + c * x)
                value = still + (m * share).sum()
                slope = (m * c * share * share).sum()
                x = x + (1 / target - 1 / value).clamp(min=0.0) * value * value / slope
            if float(value) <= target * (1 + _CLOSE):
                break
        return float(x)

    def floor(self, target: float) -> float:
        """Returns the floor with which the sum is `target`; 0 where that is not below 1.

        In 1/floor the sum is concave and made of straight pieces: below the floor sum m P/floor, above sum m. Newton's
        method goes through the pieces from one side and ends exactly.
        """
        if target >= 1.0:
            return 0.0
        m = torch.cat([piece.masses for piece in self.pieces])
        P = torch.cat([piece.denominators for piece in self.pieces])
        weighted = m * P
        x = weighted.sum() / (target - self.fixed)
        for _ in range(_MOST // _AT_ONCE):
            for _ in range(_AT_ONCE):
                before, low = x, x > P
                below, above = torch.where(low, weighted, 0.0).sum(), torch.where(low, 0.0, m).sum()
                x = torch.minimum(x, below / (target - self.fixed - above))
            if float(before - x) <= _CLOSE * float(x):
                break
        return float(x)


def mode_of(edge: Edge) -> Mode:
    """Returns the top mode of a reading over the entries of its denominators; SOAP's in its own eigenbasis."""
    weights = edge.weights
    place = {id(param): i for i, param in enumerate(weights.params)}
    pieces: list[Piece] = []
    fixed = 0.0
    for param, y, share in zip(edge.params, edge.vector, edge.shares, strict=True):
        i = place[id(param)]
        weight, made_of, factor = weights.tensors[i], weights.parts[i], weights.factors[i]
        if isinstance(weight, RotatedBlock):
            diagonal, way = weight.diagonal, weight.coordinates(y.double())
        elif isinstance(weight, Tensor):
            diagonal, way = weight, y
        else:
            made_of = None
        if made_of is None or not factor or not share:
            fixed += share
            continue
        w, along = diagonal.double().reshape(-1), way.double().reshape(-1)
        squares = torch.where(w > 0, along.square() / w, 0.0)
        total = squares.sum()
        masses = squares * (share / total.clamp(min=torch.finfo(squares.dtype).tiny))
        pieces.append(Piece(param, masses, torch.where(w > 0, factor / w, 1.0), made_of))
    return Mode(tuple(pieces), fixed)
