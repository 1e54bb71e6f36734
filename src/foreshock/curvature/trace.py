"""Trace, diagonal and Frobenius norm of an operator from products with random vectors, with standard errors.

Half of the products sketch the range of A, where the large eigenvalues live and nothing is left to chance; the other
half estimate what the sketch has missed. Every random vector plays both parts in turn, by leaving it out of the sketch
that its own remainder is taken from: XTrace and XDiag of Epperly, Tropp and Webber 2023, arXiv 2301.07825, here for
symmetric operators, and the same idea for |A|_F. On a network's Hessian, a few outliers above a bulk near zero, the
trace of an 85,002-parameter ReLU net (48.5) comes with an error of .37 where Hutchinson's is 2.7, at 64 products each.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.operator import Operator
from foreshock.errors import UsageError


@dataclass(frozen=True, slots=True)
class Estimate:
    """A number estimated with random vectors.

    Attributes:
        value: the estimate.
        standard_error: its standard deviation over the choice of the random vectors, estimated; 0 where it is exact.
        matvecs: products used.
    """

    value: float
    standard_error: float
    matvecs: int


@dataclass(frozen=True, slots=True)
class DiagonalEstimate:
    """The diagonal of an operator, estimated with random vectors.

    Attributes:
        values: tensors shaped like the parameters.
        standard_errors: of each element, tensors likewise.
        matvecs: products used.
    """

    values: list[Tensor]
    standard_errors: list[Tensor]
    matvecs: int


def trace(
    operator: Operator, *, probes: int = 32, method: str = "xtrace", generator: torch.Generator | None = None
) -> Estimate:
    """Returns the trace of a symmetric operator on n numbers.

    Args:
        operator: A.
        probes: random vectors. "xtrace" takes 2 * probes products and keeps 3 * probes vectors of n numbers;
            "hutchinson" (z'Az averaged over random signs z) takes probes products and keeps one vector.
        method: "xtrace" or "hutchinson". Where 2 * probes reaches n, "xtrace" takes n products and is exact.
        generator: of the vectors; one of its own, seeded 0, by default.

    Raises:
        UsageError: fewer than 2 probes, or another method.

    >>> from foreshock.curvature import ExplicitOperator
    >>> trace(ExplicitOperator(torch.diag(torch.arange(5.0)))).value
    10.0
    """
    generator = _checked("trace", operator, probes, generator)
    n = operator.space.n
    if method == "hutchinson":
        found = torch.stack([
            (sign.double() * operator.multiply(sign).double()).sum()
            for sign in (operator.space.rademacher(generator) for _ in range(probes))
        ])
        return _estimate(found, probes, operator)
    if method != "xtrace":
        raise UsageError(f'trace(method=...): "xtrace" or "hutchinson", got {method!r}')
    if 2 * probes >= n:
        return Estimate(float(operator.dense().double().diagonal().sum()), 0.0, n)
    sketch = _Sketch(operator, probes, generator, signs=False)
    # the trace within the sketch without vector i, and the remainder along vector i
    inside = sketch.within.trace() - (sketch.left * (sketch.within @ sketch.left)).sum(0)
    along = (sketch.inner * sketch.triangle).sum(0) - 2 * (sketch.kept * sketch.triangle).sum(0)
    along = along + (sketch.kept * (sketch.within @ sketch.kept)).sum(0)
    return _estimate(inside + sketch.stretch * along, 2 * probes, operator)


def frobenius(operator: Operator, *, probes: int = 32, generator: torch.Generator | None = None) -> Estimate:
    """Returns |A|_F, the root of the sum of squares of the eigenvalues; 2 * probes products.

    Its square, which is what is estimated, has no bias; the root of it has one of second order in the error.

    Args:
        operator: A, symmetric, on n numbers; where 2 * probes reaches n, n products make it exact.
        probes: random vectors.
        generator: of the vectors; one of its own, seeded 0, by default.

    Raises:
        UsageError: fewer than 2 probes.
    """
    generator = _checked("frobenius", operator, probes, generator)
    if 2 * probes >= operator.space.n:
        return Estimate(float(torch.linalg.matrix_norm(operator.dense().double())), 0.0, operator.space.n)
    sketch = _Sketch(operator, probes, generator, signs=False)
    images = sketch.images
    inside = images.double().square().sum() - _columns(images @ sketch.left.to(images.dtype))
    along = _columns(sketch.products - images @ sketch.kept.to(images.dtype))
    squared = _estimate(inside + sketch.stretch * along, 2 * probes, operator)
    root = math.sqrt(max(squared.value, 0.0))
    return Estimate(root, squared.standard_error / (2 * root) if root else 0.0, squared.matvecs)


def diagonal(
    operator: Operator, *, probes: int = 32, generator: torch.Generator | None = None
) -> DiagonalEstimate:
    """Returns the diagonal of a symmetric operator; 2 * probes products.

    Args:
        operator: A, on n numbers; where 2 * probes reaches n, n products make it exact.
        probes: random vectors.
        generator: of the vectors; one of its own, seeded 0, by default.

    Raises:
        UsageError: fewer than 2 probes.
    """
    generator = _checked("diagonal", operator, probes, generator)
    space = operator.space
    if 2 * probes >= space.n:
        exact = operator.dense().diagonal().clone()
        return DiagonalEstimate(space.pieces(exact), space.pieces(torch.zeros_like(exact)), space.n)
    sketch = _Sketch(operator, probes, generator, signs=True)
    left = sketch.left.to(space.dtype)
    outside = sketch.range @ left
    # within the sketch without vector i, and what vector i says of the rest: z * (I - P_i) A z
    each = sketch.starts * outside * (left * sketch.triangle.to(space.dtype)).sum(0)
    each -= outside * (sketch.images @ left)
    each += (sketch.range * sketch.images).sum(1, keepdim=True)
    error = each.std(1) / math.sqrt(probes)
    return DiagonalEstimate(space.pieces(each.mean(1)), space.pieces(error), 2 * probes)


class _Sketch:
    """Products with random vectors, an orthonormal basis of their span, and the products with that; m vectors.

    Attributes:
        starts: the random vectors z_i, in columns, shape (n, m), like those that follow.
        products: A z_i.
        range: Q, orthonormal, spanning the products.
        images: A Q.
        triangle: R = Q' A z_i, shape (m, m), float64 like those that follow.
        within: Q'AQ.
        inner: Q'z_i.
        left: unit vectors s_i: Q s_i is what the span loses when product i is left out of it.
        kept: (I - s_i s_i') Q'z_i, the part of z_i inside the span of the other products.
        stretch: factor that makes a normal z_i's remainder one of uniform direction and the length of its dimension.
    """

    def __init__(self, operator: Operator, m: int, generator: torch.Generator, *, signs: bool) -> None:
        space = operator.space
        draw = space.rademacher if signs else space.normal
        rows = [draw(generator) for _ in range(m)]
        self.starts = torch.stack(rows, dim=1)
        self.products = torch.stack([operator.multiply(row) for row in rows], dim=1)
        if not bool(torch.isfinite(self.products).all()):
            raise UsageError(f"a product of {operator!r} is not finite: the loss, its derivatives or the weights hold "
                             "NaN or infinity at these parameters")
        self.range, _ = torch.linalg.qr(self.products)
        self.images = torch.stack([operator.multiply(column.contiguous()) for column in self.range.T], dim=1)
        self.triangle = _inner(self.range, self.products)
        within = _inner(self.range, self.images)
        self.within = (within + within.T) / 2
        self.inner = _inner(self.range, self.starts)
        u, sizes, v = torch.linalg.svd(self.triangle)
        # rows of R^-1, normalised; where A has fewer than m dimensions the floor picks from what the basis has to spare
        floor = torch.finfo(space.dtype).eps * sizes[0]
        left = u @ (v / torch.clamp(sizes, min=float(floor) or 1.0)[:, None])
        self.left = left / torch.linalg.vector_norm(left, dim=0)
        self.kept = self.inner - self.left * (self.left * self.inner).sum(0)
        rest = _columns(self.starts) - self.kept.square().sum(0)
        self.stretch = (space.n - m + 1) / rest


def _checked(name: str, operator: Operator, probes: int, generator: torch.Generator | None) -> torch.Generator:
    if not isinstance(probes, int) or isinstance(probes, bool) or probes < 2:
        raise UsageError(f"{name}(probes=...): must be an integer, 2 or more, for a standard error; got {probes!r}")
    return torch.Generator(operator.device).manual_seed(0) if generator is None else generator


def _estimate(each: Tensor, matvecs: int, operator: Operator) -> Estimate:
    """Returns the mean with its error, which rounding keeps from 0 where the sketch has missed nothing."""
    rounding = torch.finfo(operator.dtype).eps * float(each.abs().max())
    return Estimate(float(each.mean()), max(float(each.std()) / math.sqrt(len(each)), rounding), matvecs)


def _inner(a: Tensor, b: Tensor) -> Tensor:
    """Returns a'b, shape (m, m), in float64."""
    return (a.T @ b).double()


def _columns(matrix: Tensor) -> Tensor:
    """Returns the squared lengths of columns, in float64."""
    lengths: Tensor = torch.linalg.vector_norm(matrix, dim=0, dtype=torch.float64)
    return lengths.square()
