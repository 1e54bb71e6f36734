"""The spectral density of an operator by stochastic Lanczos quadrature, with error bars.

A run of Lanczos from a random unit vector z turns z'f(A)z into a Gauss rule, sum_i w_i f(theta_i): exact for
polynomials of degree below 2 * steps. Averaged over random z this is tr f(A) / n, and with f a bump it is the density.

Sources: Lin, Saad and Yang 2016, arXiv 1308.5467; Ubaru, Chen and Saad 2017; Ghorbani, Krishnan and Xiao 2019, arXiv
1901.10159, algorithm 1. Every vector is orthogonalised against all earlier ones, so there are no ghost eigenvalues, and
the ends of the spectrum come out of the same run: nothing is solved for beforehand.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.operator import Operator, checked
from foreshock.curvature.space import norm
from foreshock.curvature.trace import Estimate
from foreshock.errors import UsageError

GRID = 512  # points; the distance between them is then a fifth of the default width
WIDTH = 0.01  # of the bumps, as a share of the spectrum's range: 50 nodes on average lie two widths apart
# Units of rounding below which a residual is nothing but rounding; float32 has little room above it.
EXHAUSTED = {torch.float64: 100.0, torch.float32: 10.0}
CANCELLED = 0.1  # of a product: a residual below it is orthogonalised once more
LOST = 0.03  # share of its length that a product of a vector that waits may be spoilt by, and put right in part
RESOLVED = 1e-3  # of the spectrum's range: a node with a smaller residual stands for an eigenvalue of its own
REACH = 5.0  # widths by which the grid goes beyond the ends, so that the density on it adds up to 1 within 1e-6


@dataclass(frozen=True, slots=True)
class Mass:
    """A share of the eigenvalues.

    Attributes:
        value: weight of the nodes inside the interval.
        standard_error: over the choice of the random vectors.
        low, high: what the share of these very vectors lies between, whatever Lanczos has not resolved (the inequality
            of Chebyshev, Markov and Stieltjes); `standard_error` comes on top.
    """

    value: float
    standard_error: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Density:
    """The distribution of the n eigenvalues of an operator, as a density that integrates to 1.

    Error bars are those of the random vectors: the larger of the standard error over the probes (two and more) and of
    what is to be expected, since z'Bz for a random unit vector z has variance 2 (tr(B^2)/n - (tr(B)/n)^2) / (n + 2).
    With one probe only the latter is there, where a resolved eigenvalue counts for at least its share of 1/n, however
    little of it the probe happened to hold. What `steps` cannot resolve is in `Mass.low` and `Mass.high`.

    Attributes:
        grid: eigenvalues, shape (512,), float64 on the CPU like all tensors here.
        density: at the grid, bumps of standard deviation `width` in the place of nodes.
        standard_error: of the density, shape (512,).
        nodes: Ritz values, shape (probes, steps), ascending; a run that ended early is filled up with its last one.
        weights: of the nodes, shape (probes, steps), each row adding up to 1; 0 where filled up.
        residuals: |A u - theta u| of the nodes, likewise: an eigenvalue is that near to each.
        lowest, highest: ends of the spectrum as seen: extreme Ritz values, which lie inside the true range.
        width: of the bumps.
        n: number of eigenvalues.
        matvecs: products used: `steps` for each probe, fewer where a run has exhausted its space.
        exact: for each probe whether its rule is that of its measure itself, nothing being left to resolve.
        notes: how the products were obtained.
    """

    grid: Tensor
    density: Tensor
    standard_error: Tensor
    nodes: Tensor
    weights: Tensor
    residuals: Tensor
    lowest: float
    highest: float
    width: float
    n: int
    matvecs: int
    exact: tuple[bool, ...]
    notes: tuple[str, ...] = ()

    @property
    def probes(self) -> int:
        return self.nodes.shape[0]

    @property
    def _least(self) -> Tensor:
        return _least(self.nodes, self.weights, self.residuals, self.n)

    def at(self, points: Tensor, *, width: float | None = None) -> tuple[Tensor, Tensor]:
        """Returns density and standard error at other points, shape (m,), or with bumps of another width; no products.

        Raises:
            UsageError: the width is not positive.
        """
        width = self.width if width is None else float(width)
        if not width > 0:
            raise UsageError(f"width: must be positive, got {width:g}")
        points = torch.as_tensor(points, dtype=torch.float64).reshape(-1)
        return _average(_bumps(points, self.nodes, width), self.weights, self._least, self.n)

    def moment(self, k: int) -> Estimate:
        """Returns tr(A^k) / n; for each probe z exactly z'A^k z up to k = 2 * steps - 1."""
        value, error = _average(self.nodes**k, self.weights, self._least, self.n)
        return Estimate(float(value), float(error), self.matvecs)

    def mass(self, a: float, b: float) -> Mass:
        """Returns the share of eigenvalues in [a, b]; times n it is their number.

        Raises:
            UsageError: a is above b.
        """
        if not a <= b:
            raise UsageError(f"mass(a, b): a must not be above b, got {a:g} and {b:g}")
        value, error = _average(((self.nodes >= a) & (self.nodes <= b)).double(), self.weights, self._least, self.n)
        low_a, high_a = self._share(self.nodes < a)
        low_b, high_b = self._share(self.nodes <= b)
        low, high = (low_b - high_a).clamp(min=0.0).mean(), (high_b - low_a).clamp(max=1.0).mean()
        return Mass(float(value), float(error), float(low), float(high))

    def _share(self, below: Tensor) -> tuple[Tensor, Tensor]:
        """Returns what each probe's measure of a half line lies between, (probes,) each, given the nodes on it.

        With k nodes on it that is the weight of the first k - 1 and of the first k + 1.
        """
        total = torch.nn.functional.pad(self.weights.cumsum(1), (1, 0))
        count = below.sum(1, keepdim=True)
        slack = 1 - torch.tensor(self.exact).long().unsqueeze(1)
        last = self.weights.shape[1]
        ends = [total.gather(1, (count + side * slack).clamp(0, last)).squeeze(1) for side in (-1, 1)]
        return ends[0], ends[1]


def spectral_density(
    operator: Operator, *, steps: int = 50, probes: int = 1, generator: torch.Generator | None = None
) -> Density:
    """Returns the distribution of the eigenvalues of a symmetric operator.

    Args:
        operator: A, on n numbers.
        steps: Lanczos steps, one product each; an outlying eigenvalue is resolved after a few, the bulk to about
            (highest - lowest) / steps.
        probes: random starting vectors, uniform on the sphere; errors fall with the root of n * probes.
        generator: of the vectors; one of its own, seeded 0, by default.

    Raises:
        UsageError: steps or probes below 1, or a product that is not finite.

    >>> from foreshock.curvature import ExplicitOperator
    >>> found = spectral_density(ExplicitOperator(torch.diag(torch.tensor([1.0, 1.0, 1.0, 9.0]))), steps=4, probes=500)
    >>> found.matvecs, round(found.highest, 4), found.mass(8, 10).standard_error < 0.02
    (1000, 9.0, True)
    """
    checked(operator, "spectral_density")
    for name, number in (("steps", steps), ("probes", probes)):
        if not isinstance(number, int) or number < 1:
            raise UsageError(f"spectral_density({name}=...): must be a positive integer, got {number!r}")
    space = operator.space
    if generator is None:
        generator = torch.Generator(space.device).manual_seed(0)
    steps = min(steps, space.n)
    nodes, weights, residuals = torch.zeros(3, probes, steps, dtype=torch.float64)
    basis = torch.empty(steps, space.n, dtype=space.dtype, device=space.device)
    exact: list[bool] = []
    before = operator.matvecs
    for probe in range(probes):
        alphas, betas = _lanczos(operator, space.normal(generator), basis)
        count = len(alphas)
        off = torch.tensor(betas[:-1], dtype=torch.float64)
        middle = torch.diag(torch.tensor(alphas, dtype=torch.float64))
        values, vectors = torch.linalg.eigh(middle + torch.diag(off, 1) + torch.diag(off, -1))
        nodes[probe, :count], nodes[probe, count:] = values, values[-1]
        weights[probe, :count] = vectors[0] ** 2 / (vectors[0] ** 2).sum()
        residuals[probe, :count] = betas[-1] * vectors[-1].abs()
        exact.append(betas[-1] == 0.0 or count == space.n)
    lowest, highest = float(nodes.min()), float(nodes.max())
    width = WIDTH * ((highest - lowest) or abs(highest) or 1.0)
    grid = torch.linspace(lowest - REACH * width, highest + REACH * width, GRID, dtype=torch.float64)
    density, error = _average(_bumps(grid, nodes, width), weights, _least(nodes, weights, residuals, space.n), space.n)
    return Density(
        grid, density, error, nodes, weights, residuals, lowest, highest, width, space.n, operator.matvecs - before,
        tuple(exact), operator.notes,
    )


def _lanczos(operator: Operator, start: Tensor, basis: Tensor) -> tuple[list[float], list[float]]:
    """Returns diagonal and off-diagonal of the Lanczos matrix; the last off-diagonal is that of the residual.

    Vectors are orthogonalised against all earlier ones two at a time, in one pass over the basis, which halves the
    memory that is read; one by one where a vector that waits for the next would lose too much until then.

    Args:
        start: shape (n,).
        basis: shape (steps, n), filled with the orthonormal vectors; its contents before do not matter.
    """
    alphas: list[float] = []
    betas: list[float] = []
    rest, size, scale = start, norm(start), 0.0
    eps = torch.finfo(start.dtype).eps
    waiting = False
    for j in range(basis.shape[0]):
        seen = basis[:j]
        torch.div(rest, size, out=basis[j])
        rest = operator.multiply(basis[j])
        if waiting:
            pair = torch.stack([basis[j], rest])
            pair.addmm_(pair @ seen.T, seen, alpha=-1)
            torch.div(pair[0], norm(pair[0]), out=basis[j])
            rest = pair[1]
        alphas.append(float(torch.dot(basis[j], rest)))
        if not math.isfinite(alphas[-1]):
            raise UsageError(
                f"spectral_density(operator): product {operator.matvecs} of {operator!r} is not finite; the loss, its "
                "derivatives or the weights hold NaN or infinity at these parameters"
            )
        rest.sub_(basis[j], alpha=alphas[-1])
        if j and not waiting:
            rest.sub_(basis[j - 1], alpha=betas[-1])
        size = norm(rest)
        product = math.hypot(alphas[-1], betas[-1] if betas else 0.0, size)
        scale = max(scale, product)
        # rounding grows by scale / size along the outliers with each step, and what is left of a product that was
        # taken away nearly whole is full of it
        risky = size < CANCELLED * product or eps * scale**2 > LOST * size**2
        if risky:
            seen = basis[: j + 1]
            rest.addmv_(seen.T, seen @ rest, alpha=-1)
            size = norm(rest)
        waiting = not waiting and not risky
        if size <= EXHAUSTED[rest.dtype] * eps * scale:
            betas.append(0.0)
            break
        betas.append(size)
    return alphas, betas


def _bumps(points: Tensor, nodes: Tensor, width: float) -> Tensor:
    """Returns normal densities around the nodes, shape (points, probes, steps)."""
    return torch.exp(-0.5 * ((points[:, None, None] - nodes) / width) ** 2) / (width * math.sqrt(2 * math.pi))


def _least(nodes: Tensor, weights: Tensor, residuals: Tensor, n: int) -> Tensor:
    """Returns the weights, raised to 1/n where a node is an eigenvalue, (probes, steps)."""
    resolved = (weights > 0) & (residuals <= RESOLVED * (nodes.max() - nodes.min()))
    return torch.where(resolved, weights.clamp(min=1.0 / n), weights)


def _average(values: Tensor, weights: Tensor, least: Tensor, n: int) -> tuple[Tensor, Tensor]:
    """Returns mean and standard error over probes of sum_i w_i f(theta_i), given f(theta), (..., probes, steps)."""
    each = (values * weights).sum(-1)
    mean, probes = each.mean(-1), weights.shape[0]
    spread = ((values - mean[..., None, None]) ** 2 * least).sum(-1).mean(-1)
    error = torch.sqrt(2.0 * spread / ((n + 2) * probes))
    if probes > 1:
        error = torch.maximum(error, each.std(-1) / math.sqrt(probes))
    return mean, error
