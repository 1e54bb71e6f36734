"""Generalised sharpness: the most curvature that a unit step of a norm can meet, for methods whose steps are its units.

Steepest descent in a norm N steps along the unit ball of N: sign descent of the l-infinity norm, Muon of the spectral
norm. Its edge is S_N = max over N(d) = 1 of d'Hd, at 2 / lr; the top eigenvalue, S_N of the Euclidean norm, stays far
below (Islamov et al. 2026, arXiv 2603.05002). For sign and spectral steps the maximum is hard to find (for signs it
is max-cut), so what is returned is the best of several climbs: a lower bound, attained by the direction returned.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.eigs import eigsh
from foreshock.curvature.operator import ExplicitOperator, Operator, checked
from foreshock.curvature.space import Space, dot
from foreshock.errors import UsageError

NORMS = ("linf", "spectral", "l2")
ENUMERATED = 16  # numbers up to which all sign vectors are tried: 32,768 of them, known from 16 products
KNOWN = 100  # climbs where the whole matrix costs less than the products allowed, so that climbing is free
GAIN = 1e-3  # relative rise below which a climb has arrived
AGREE = 1e-2  # relative spread of the climbs below which another one is not worth its products
RELEASE = 0.5  # of the shift after a product that rose: curvature that forced it once need not lie ahead

Vector = Tensor | Sequence[Tensor]


@dataclass(frozen=True, slots=True)
class NormSharpness:
    """The largest d'Hd found over steps of unit norm.

    Attributes:
        value: a lower bound of S_N; S_N itself where `exact`.
        norm: "linf", "spectral" or "l2".
        direction: d with d'Hd = value, tensors shaped like the parameters; the next call's warm start.
        climbs: where each climb ended, in their order; how far they agree is what is known of the bound's quality.
        converged: whether the best climb arrived before its products were used up.
        exact: whether all steps of the ball were compared.
        matvecs: products used.
        notes: how the products were obtained.
    """

    value: float
    norm: str
    direction: list[Tensor]
    climbs: tuple[float, ...]
    converged: bool
    exact: bool
    matvecs: int
    notes: tuple[str, ...] = ()

    def edge_ratio(self, lr: float, gradient: Vector | None = None) -> float:
        """Returns how far the method is from its edge, which is 1.

        Args:
            lr: learning rate: the length of a step over |g|_*, or the length itself where `gradient` is given.
            gradient: g, for methods that do not scale their step by the dual norm of the gradient (SignSGD, Muon,
                Lion without momentum): lr S_N / (2 |g|_*), else lr S_N / 2. NaN where g is 0.
        """
        if gradient is None:
            return lr * self.value / 2
        size = dual_norm(gradient, self.norm)
        return lr * self.value / (2 * size) if size > 0 else math.nan


def generalized_sharpness(
    operator: Operator, norm: str = "linf", *, restarts: int = 2, warm_start: Vector | None = None,
    generator: torch.Generator | None = None, max_matvecs: int = 45,
) -> NormSharpness:
    """Returns the largest curvature d'Hd found over the steps d that a method of this norm can take.

    "linf": every entry of d is +1 or -1. "spectral": every parameter of two and more dimensions, flattened to
    (first, the rest) as Muon does, has all singular values 1; a vector (a bias, a gain) counts as a matrix of one
    column, so that its Euclidean norm is 1. The norm of the whole is the largest over the parameters, and H couples
    them. "l2": d is the top eigenvector.

    From each start d moves to the step that the linearised curvature favours, d <- lmo(Hd), which climbs wherever H
    is positive along the move; where it is not, lmo((H + shift) d) with the shift that the failed move measured, so
    that no move falls. Where the climbs disagree, the products left over go to climbs from the best d with some entries
    turned ("linf", those that matter least) and from new random ones.

    Args:
        operator: H, all parameters together.
        norm: "linf", "spectral" or "l2".
        restarts: random starts beside the first one, which is `warm_start`, or else the gradient where the operator
            knows it.
        warm_start: a direction, such as the last result's.
        generator: of the starts; one of its own, seeded 0, by default.
        max_matvecs: products allowed, 45 as in the study of this estimator. Where the dimension is no larger they give
            the matrix itself; up to 16 dimensions "linf" then compares all sign vectors.

    Raises:
        UsageError: an unknown norm, a negative number of restarts, or a product that is not finite.

    >>> from foreshock.curvature import ExplicitOperator
    >>> hessian = ExplicitOperator(torch.tensor([[2.0, -1.0], [-1.0, 3.0]]))
    >>> generalized_sharpness(hessian).value, generalized_sharpness(hessian).edge_ratio(lr=0.5)
    (7.0, 1.75)

    Source: Islamov et al. 2026, arXiv 2603.05002 (S_N and the Frank-Wolfe idea); the shift, the turning of entries and
    the exact small cases are this library's.
    """
    checked(operator, "generalized_sharpness")
    if norm not in NORMS:
        raise UsageError(f"generalized_sharpness(norm=...): one of {', '.join(NORMS)}, got {norm!r}")
    if restarts < 0 or max_matvecs < 1:
        raise UsageError(
            f"generalized_sharpness: restarts must not be negative and max_matvecs positive, got {restarts!r} and "
            f"{max_matvecs!r}"
        )
    space = operator.space
    first = None if warm_start is None else space.take(warm_start)
    if norm == "l2":
        found = eigsh(operator, tol=GAIN, warm_start=first, generator=generator, max_matvecs=max(max_matvecs, 2))
        value = float(found.values[0])
        done = bool(found.converged[0])
        return NormSharpness(value, norm, found.vectors[0], (value,), done, False, found.matvecs, found.notes)
    if generator is None:
        generator = torch.Generator(space.device).manual_seed(0)
    if first is None:
        first = operator.start()
    known: Operator | None = None
    if space.n <= max_matvecs:  # the products give the matrix, and climbing on it is free
        matrix = operator.dense()
        matrix = (matrix + matrix.T) / 2
        if norm == "linf" and space.n <= ENUMERATED:
            value, signs = _best_signs(matrix)
            return NormSharpness(value, norm, space.pieces(signs), (value,), True, True, space.n, operator.notes)
        known = ExplicitOperator(matrix, space.params)
    search = _Search(known or operator, norm, generator, KNOWN * 100 if known else max_matvecs)
    for start in (first, *[None] * restarts):
        search.climb(search.random() if start is None else search.ball(start, search.random()))
    while len(search.climbs) < KNOWN if known else search.open:
        search.climb(search.turned() if norm == "linf" and len(search.climbs) % 3 else search.random())
    return NormSharpness(
        max(search.climbs), norm, space.pieces(search.best), tuple(search.climbs), search.arrived, False,
        space.n if known else search.matvecs, operator.notes,
    )


def dual_norm(gradient: Vector | Sequence[Tensor | None], norm: str) -> float:
    """Returns |g|_*, the most that a step of unit norm gains.

    For "linf" the sum of absolute values, for "l2" the Euclidean norm, for "spectral" the sum of all singular values
    (of vectors, of their Euclidean norms).

    >>> dual_norm([torch.tensor([3.0, -4.0])], "linf"), dual_norm([torch.tensor([3.0, -4.0])], "spectral")
    (7.0, 5.0)
    """
    if norm not in NORMS:
        raise UsageError(f"dual_norm(norm=...): one of {', '.join(NORMS)}, got {norm!r}")
    tensors = [gradient] if isinstance(gradient, Tensor) else [g for g in gradient if g is not None]
    exact = [g.detach().double() for g in tensors if g.numel()]
    if not exact:
        return 0.0
    if norm == "linf":
        return float(torch.stack([g.abs().sum() for g in exact]).sum())
    if norm == "l2":
        return math.sqrt(float(torch.stack([g.square().sum() for g in exact]).sum()))
    sizes = [torch.linalg.svdvals(g.flatten(1)).sum() if g.dim() > 1 else g.square().sum().sqrt() for g in exact]
    return float(torch.stack(sizes).sum())


class _Search:
    """Climbs on the vertices of a ball, with a budget of products."""

    def __init__(self, operator: Operator, norm: str, generator: torch.Generator, budget: int) -> None:
        self.operator, self.norm, self.generator, self.budget = operator, norm, generator, budget
        self.space: Space = operator.space
        self.matvecs = 0
        self.climbs: list[float] = []
        self.arrived = False
        self.best = self.image = self.space.zeros()

    @property
    def open(self) -> bool:
        """Whether products are left and the climbs disagree."""
        top = max(self.climbs)
        near = sum(top - value <= AGREE * abs(top) for value in self.climbs)
        return self.matvecs < self.budget and near < 3

    def ball(self, wanted: Tensor, instead: Tensor) -> Tensor:
        """Returns the step with the largest inner product with `wanted`; what that leaves open is as in `instead`."""
        if self.norm == "linf":
            return torch.where(wanted == 0, instead, torch.sign(wanted))
        result = instead.clone()
        for slot, piece in zip(self.space.pieces(result), self.space.pieces(wanted), strict=True):
            if piece.numel() and bool((piece != 0).any()):
                slot.copy_(polar(piece))
        return result

    def random(self) -> Tensor:
        if self.norm == "linf":
            return self.space.rademacher(self.generator)
        drawn = self.space.normal(self.generator)
        return self.ball(drawn, drawn)

    def turned(self) -> Tensor:
        """Returns the best step with some entries turned, more likely those that hold least of its curvature."""
        chance = torch.rand(2, self.space.n, generator=self.generator, device=self.generator.device)
        count = max(1, int(self.space.n * 0.5 * float(chance[1, 0]) ** 2))
        margins = self.best * self.image * chance[0].to(self.space.device)
        result = self.best.clone()
        result[margins.topk(count, largest=False).indices] *= -1
        return result

    def climb(self, d: Tensor) -> None:
        """Climbs from d until nothing is gained, or the products are used up."""
        if self.climbs and self.matvecs >= self.budget:
            return
        image = self._product(d)
        value, shift, arrived = dot(d, image), 0.0, False
        while self.matvecs < self.budget and not arrived:
            other = self.ball(image if shift == 0 else image + shift * d, d)
            move = other - d
            length = dot(move, move)
            if length == 0:
                arrived = True
                break
            ahead = self._product(other)
            reached = dot(other, ahead)
            if reached > value:
                arrived = reached - value <= GAIN * abs(reached)
                d, image, value, shift = other, ahead, reached, shift * RELEASE
            else:
                # all steps are as long, so a move of lmo((H + shift) d) gains at least shift |move|^2 + move'H move
                bend = dot(move, ahead - image) / length
                arrived = abs(reached - value) <= GAIN**2 * abs(value)
                shift = max(2 * shift, -1.5 * bend)
        if not self.climbs or value > max(self.climbs):
            self.best, self.image, self.arrived = d, image, arrived
        self.climbs.append(value)

    def _product(self, d: Tensor) -> Tensor:
        self.matvecs += 1
        image = self.operator.multiply(d)
        if not bool(torch.isfinite(image).all()):
            raise UsageError(
                f"generalized_sharpness(operator): a product of {self.operator!r} is not finite: the loss or its "
                "derivatives hold NaN or infinity at these parameters"
            )
        return image


def polar(piece: Tensor) -> Tensor:
    """Returns the nearest tensor with all singular values 1, flattened to (first, the rest); of a vector, g / |g|."""
    if piece.dim() < 2:
        return torch.div(piece, torch.linalg.vector_norm(piece))
    scaled = piece.flatten(1) / piece.abs().max()
    u, _, v = torch.linalg.svd(scaled, full_matrices=False)
    return torch.mm(u, v).view(piece.shape)


def _best_signs(matrix: Tensor) -> tuple[float, Tensor]:
    """Returns the largest d'Hd over all sign vectors, and one that has it."""
    n = matrix.shape[0]
    exact = matrix.double().cpu()
    rest = torch.tensor(list(itertools.product((1.0, -1.0), repeat=n - 1)), dtype=torch.float64)
    rest = rest.view(1 << (n - 1), n - 1)
    signs = torch.cat([torch.ones(len(rest), 1, dtype=torch.float64), rest], dim=1)
    values = ((signs @ exact) * signs).sum(1)
    best = int(values.argmax())
    return float(values[best]), signs[best].to(matrix)
