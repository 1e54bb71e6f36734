"""The Lanczos process: an orthonormal basis grown by products, and the operator projected onto it.

One implementation serves single vectors, blocks (the band Lanczos process of Ruhe 1979), thick restarts (Wu and Simon
2000) and deflation: the basis holds vectors whose product is known, then those that wait for theirs. Every new vector
is orthogonalised twice against all of them, with inner products accumulated in float64, and the projected matrix is
kept whole, so that it is the true Rayleigh quotient of the basis and not the tridiagonal one that rounding spoils.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foreshock.curvature.operator import Operator
from foreshock.curvature.space import dots, norm
from foreshock.errors import UsageError


@dataclass(frozen=True, slots=True)
class Ritz:
    """Approximate eigenpairs of the operator, values in descending order.

    Attributes:
        values: shape (m,).
        coefficients: of the eigenvectors in the processed part of the basis, in columns, shape (m, m).
        residuals: |A x - value x| of each pair, shape (m,): some eigenvalue lies within this distance.
    """

    values: np.ndarray
    coefficients: np.ndarray
    residuals: np.ndarray


class Krylov:
    """A growing basis of a Krylov space of an operator.

    Args:
        operator: what is multiplied with.
        capacity: vectors that the basis may hold; a `restart` makes room.

    Attributes:
        projected: basis^T A basis in its processed columns; entry (i, j) belongs to basis vectors i and j.
        processed: vectors whose product is known; they come first.
        held: vectors in the basis.
        matvecs: products taken.
    """

    def __init__(self, operator: Operator, capacity: int) -> None:
        self.operator = operator
        self.capacity = min(capacity, operator.space.n) + 1
        self._basis = torch.empty(0, operator.space.n, dtype=operator.dtype, device=operator.device)
        self.projected = np.zeros((self.capacity, self.capacity))
        self.processed = 0
        self.held = 0
        self.matvecs = 0
        self._eps = float(torch.finfo(operator.dtype).eps)
        self._scale = 0.0  # largest |A q| seen

    @property
    def waiting(self) -> int:
        """Vectors in the basis whose product is not known yet."""
        return self.held - self.processed

    @property
    def exhausted(self) -> bool:
        """Whether the basis spans an invariant space: only a new direction can go on."""
        return self.waiting == 0

    @property
    def full(self) -> bool:
        """Whether the next product might find no room for what it adds."""
        return self.held >= self.capacity

    def admit(self, vector: Tensor) -> bool:
        """Adds a direction to the basis; returns False where it lies in its span already, or is zero."""
        length = norm(vector)
        if not np.isfinite(length):
            raise UsageError("a start vector holds NaN or infinity")
        if length == 0.0:
            return False
        rest, left, _ = self._orthogonalise(vector / length)
        if left <= 100 * self._eps:
            return False
        self._store(rest, left)
        return True

    def step(self) -> None:
        """Multiplies the first waiting vector, and lets what is new in the product wait in turn.

        Raises:
            UsageError: the product holds NaN or infinity.
        """
        j = self.processed
        product = self.operator.multiply(self._basis[j])
        self.matvecs += 1
        length = norm(product)
        if not np.isfinite(length):
            raise UsageError(
                "a product with the curvature holds NaN or infinity, so no eigenvalue can be had: the loss, its "
                "gradient or its second derivative overflowed (after a divergence parameters can still be finite). "
                "Use float64, or measure before the divergence"
            )
        self._scale = max(self._scale, length)
        rest, left, coefficients = self._orthogonalise(product)
        self.projected[: self.held, j] = coefficients
        self.processed += 1
        # what rounding leaves of a product that lies in the span is no new direction
        if left > 50 * self._eps * max(self._scale, length) and self.held < self.capacity:
            self.projected[self.held, j] = left
            self._store(rest, left)

    def ritz(self) -> Ritz:
        """Returns the approximate eigenpairs that the processed vectors give."""
        m, held = self.processed, self.held
        block = self.projected[:m, :m]
        values, vectors = np.linalg.eigh((block + block.T) / 2)
        values, vectors = values[::-1], vectors[:, ::-1]
        outside = self.projected[m:held, :m] @ vectors
        floor = self._eps * max(self._scale, 0.0) * 2
        return Ritz(values, vectors, np.maximum(np.linalg.norm(outside, axis=0), floor))

    def vectors(self, coefficients: np.ndarray) -> Tensor:
        """Returns the combinations of the processed basis given by columns (m, k), as unit rows, shape (k, n)."""
        mixing = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self.operator.device, self.operator.dtype)
        rows = mixing @ self._basis[: self.processed]
        lengths = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
        unit: Tensor = rows / lengths.clamp_min(torch.finfo(rows.dtype).tiny)
        return unit

    def restart(self, coefficients: np.ndarray) -> None:
        """Keeps of the processed basis only the combinations given by orthonormal columns (m, k), and what waits."""
        m, held, kept = self.processed, self.held, coefficients.shape[1]
        mixing = torch.from_numpy(np.ascontiguousarray(coefficients.T)).to(self.operator.device, self.operator.dtype)
        rows = mixing @ self._basis[:m]
        waiting = self._basis[m:held].clone()
        outside = self.projected[m:held, :m] @ coefficients
        block = coefficients.T @ self.projected[:m, :m] @ coefficients
        self.projected[:] = 0.0
        self.projected[:kept, :kept] = (block + block.T) / 2
        self.projected[kept : kept + held - m, :kept] = outside
        self._basis[:kept] = rows
        self._basis[kept : kept + held - m] = waiting
        self.processed, self.held = kept, kept + held - m

    def _orthogonalise(self, vector: Tensor) -> tuple[Tensor, float, np.ndarray]:
        """Returns what of a vector is orthogonal to the basis, its norm, and its coefficients in the basis."""
        coefficients, rest = np.zeros(self.held), vector
        if self.held:
            rows = self._basis[: self.held]
            # Twice is enough (Giraud et al. 2005), and what the first pass gets wrong in single precision the second
            # measures in double.
            first = rows @ rest
            rest = torch.addmv(rest, rows.T, first, alpha=-1.0)
            second = dots(rows, rest)
            rest = rest.addmv_(rows.T, second.to(rest.dtype), alpha=-1.0)
            coefficients = (first + second).cpu().numpy() if first.dtype == torch.float64 else (
                first.double() + second if second.device == first.device else first.cpu().double() + second
            ).cpu().numpy()
        return rest, norm(rest), coefficients

    def _store(self, rest: Tensor, length: float) -> None:
        if self.held == self._basis.shape[0]:
            grown = torch.empty(
                min(self.capacity, max(8, 2 * self.held)), self._basis.shape[1], dtype=rest.dtype, device=rest.device
            )
            grown[: self.held] = self._basis
            self._basis = grown
        torch.div(rest, length, out=self._basis[self.held])
        self.held += 1

