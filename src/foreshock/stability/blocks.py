"""Denominators that are not diagonal: symmetric positive matrices acting on one parameter."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

__all__ = ["Block", "KroneckerBlock", "RotatedBlock", "eigen"]


class Block(Protocol):
    """A symmetric positive semi-definite matrix on the entries of one parameter, never written out."""

    @property
    def shape(self) -> torch.Size:
        """Shape of the parameter."""

    def power(self, x: Tensor, exponent: float) -> Tensor:
        """Returns M^exponent x for x of the parameter's shape; directions with eigenvalue 0 give 0 for any exponent."""

    def reciprocal(self, numerator: float = 1.0) -> Block:
        """Returns numerator * M^-1 on the range of M, 0 off it."""

    def dense(self) -> Tensor:
        """Returns the (n, n) matrix on the flattened parameter; for tests and small tensors."""


@dataclass(frozen=True, slots=True)
class KroneckerBlock:
    """scale * A_1 (x) A_2 (x) ..., one symmetric matrix for each dimension of `view`: Shampoo's and Muon's kind.

    Attributes:
        shape: shape of the parameter.
        factors: (eigenvectors (d, d) in columns, eigenvalues (d,)) for each dimension, None where it is the identity.
        scale: a factor of the whole.
        view: the shape whose dimensions the factors belong to, when not `shape` itself.
    """

    shape: torch.Size
    factors: tuple[tuple[Tensor, Tensor] | None, ...]
    scale: float = 1.0
    view: torch.Size | None = None

    def power(self, x: Tensor, exponent: float) -> Tensor:
        """Returns M^exponent x."""
        spread = torch.full((), self.scale if self.scale > 0 else 0.0, dtype=x.dtype, device=x.device)
        y = x.reshape(self.view or self.shape) * _power(spread, exponent)
        for place, factor in enumerate(self.factors):
            if factor is not None:
                vectors, values = (part.to(x.dtype) for part in factor)
                matrix = (vectors * _power(values, exponent)) @ vectors.mT
                y = _along(matrix, y, place)
        return y.reshape(self.shape)

    def reciprocal(self, numerator: float = 1.0) -> KroneckerBlock:
        """Returns numerator * M^-1 on the range of M."""
        turned = tuple(None if each is None else (each[0], _power(each[1], -1.0)) for each in self.factors)
        return replace(self, factors=turned, scale=numerator / self.scale if self.scale else 0.0)

    def dense(self) -> Tensor:
        """Returns the (n, n) matrix."""
        return _dense(self)


@dataclass(frozen=True, slots=True)
class RotatedBlock:
    """Q diag(d) Q' with Q = Q_1 (x) Q_2 (x) ...: SOAP's kind, a diagonal in a Kronecker eigenbasis.

    Attributes:
        shape: shape of the parameter.
        bases: orthogonal (d, d) matrices with the basis in columns, one for each dimension of `diagonal`, None where
            it is the identity.
        diagonal: d, in the basis; its shape is that of the parameter or of the view that the bases belong to.
    """

    shape: torch.Size
    bases: tuple[Tensor | None, ...]
    diagonal: Tensor

    def coordinates(self, x: Tensor) -> Tensor:
        """Returns Q'x, shaped like the diagonal."""
        y = x.reshape(self.diagonal.shape)
        for place, basis in enumerate(self.bases):
            if basis is not None:
                y = _along(basis.to(x.dtype).mT, y, place)
        return y

    def power(self, x: Tensor, exponent: float) -> Tensor:
        """Returns M^exponent x."""
        y = self.coordinates(x) * _power(self.diagonal.to(x.dtype), exponent)
        for place, basis in enumerate(self.bases):
            if basis is not None:
                y = _along(basis.to(x.dtype), y, place)
        return y.reshape(self.shape)

    def reciprocal(self, numerator: float = 1.0) -> RotatedBlock:
        """Returns numerator * M^-1 on the range of M."""
        return replace(self, diagonal=numerator * _power(self.diagonal, -1.0))

    def dense(self) -> Tensor:
        """Returns the (n, n) matrix."""
        return _dense(self)


def eigen(matrix: Tensor, exponent: float) -> tuple[Tensor, Tensor]:
    """Returns (eigenvectors, eigenvalues ** exponent) of a symmetric positive semi-definite matrix (d, d).

    What is below rounding of the largest eigenvalue counts as 0 and stays 0 for negative exponents.
    """
    values, vectors = torch.linalg.eigh(matrix)
    least = values[-1:].clamp(min=0.0) * (torch.finfo(values.dtype).eps * len(values))
    return vectors, _power(torch.where(values > least, values, 0.0), exponent)


def _power(values: Tensor, exponent: float) -> Tensor:
    if exponent == 1.0:
        return values
    return torch.where(values > 0, values.clamp(min=torch.finfo(values.dtype).tiny) ** exponent, 0.0)


def _along(matrix: Tensor, x: Tensor, place: int) -> Tensor:
    """Multiplies dimension `place` of x by a matrix."""
    return torch.movedim(torch.tensordot(matrix, x, dims=([1], [place])), 0, place)


def _dense(block: Block) -> Tensor:
    size = block.shape.numel()
    reference = _sample(block)
    columns: Sequence[Tensor] = torch.eye(size, dtype=reference.dtype, device=reference.device).unbind(0)
    return torch.stack([block.power(column.reshape(block.shape), 1.0).reshape(-1) for column in columns], dim=1)


def _sample(block: Block) -> Tensor:
    if isinstance(block, RotatedBlock):
        return block.diagonal
    factors = block.factors if isinstance(block, KroneckerBlock) else ()
    return next((each[1] for each in factors if each is not None), torch.zeros(()))
