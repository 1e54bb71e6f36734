"""What makes chi grow: the landscape, or what the optimizer multiplies gradients by; exact to first order.

With u the unit top eigenvector of W^(1/2) H W^(1/2), y = W^(1/2) u and a top eigenvalue that stands alone,

    d ln chi = sum_i u_i^2 d ln W_i  +  y' dH y / chi

The first term is the preconditioner's share; W_i = lr q / ((2 - lr omega) c D_i) parts it into the learning rate (with
decoupled decay and clipping), the momentum (its gain q and bias correction c) and the denominators D_i, tensor by
tensor. The second is the landscape's. Plain gradient descent is all landscape; Adam on a quadratic all preconditioner.
Between two readings the first term is summed with the mean of u^2 at both ends, which leaves an error of third order in
the change; the landscape's part is what remains, or is measured by one product.

For W that is no diagonal (Shampoo, SOAP) the first term is -y' d(W^-1) y, and of each block the logarithm of
y' W^-1 y is compared at both ends: the same to first order, and exact where a block is scaled.

Source: derived from first-order perturbation of eigenvalues; the question is that of Bai et al. 2025, arXiv 2506.04805.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from foreshock.curvature.edge import Edge
from foreshock.curvature.operator import Operator
from foreshock.curvature.space import chunks
from foreshock.errors import UsageError
from foreshock.stability.blocks import Block

SAME = 0.5  # |cos| of two top directions below which they are two: the top eigenvector has swapped
JOINED = 0.05  # share of the top eigenvector on entries that began or ceased to move, above which a split says little


@dataclass(frozen=True, slots=True)
class Mark:
    """What a split needs of a reading: its direction and its weights, two tensors as long as each parameter.

    Attributes:
        chi: as in `Edge`.
        params, vector: as in `Edge`.
        tensors: W of those parameters.
        factors, gains, corrections, l2: of `EdgeWeights`, for those parameters.
        maximize: as in `EdgeWeights`.
    """

    chi: float
    params: tuple[Tensor, ...] = field(repr=False)
    vector: Sequence[Tensor] = field(repr=False)
    tensors: Sequence[Tensor | Block] = field(repr=False)
    factors: tuple[float, ...]
    gains: tuple[float, ...]
    corrections: tuple[float, ...]
    l2: tuple[float, ...]
    maximize: bool

    @classmethod
    def of(cls, edge: Edge) -> Mark:
        """Returns what is to be kept of a reading."""
        weights = edge.weights
        place = {id(param): i for i, param in enumerate(weights.params)}
        mine = [place[id(param)] for param in edge.params]
        return cls(
            edge.chi, edge.params, edge.vector, [weights.tensors[i] for i in mine],
            tuple(weights.factors[i] for i in mine), tuple(weights.gains[i] for i in mine),
            tuple(weights.corrections[i] for i in mine), tuple(weights.l2[i] for i in mine), weights.maximize,
        )


@dataclass(frozen=True, slots=True)
class Split:
    """Growth of ln chi from one reading to the next, and who made it; NaN where the two are of different eigenvectors.

    Attributes:
        growth: ln chi after less ln chi before.
        lr: part of the learning rate, with decoupled decay and clipping.
        momentum: part of the momentum's gain and bias correction.
        denominators: parts of the denominators, for each of `params`.
        measured: y' dH y / chi of the first reading, as a logarithm, where a product was spent on it; else NaN.
        overlap: |cos| of the two top directions in parameters.
        joined: share of the top eigenvector on entries that only one of the steps moves (W = 0 at the other); they
            have no d ln W, and are left to the landscape.
        params: of the later reading.
    """

    growth: float
    lr: float
    momentum: float
    denominators: tuple[float, ...]
    measured: float
    overlap: float
    joined: float
    params: tuple[Tensor, ...] = field(repr=False)

    @property
    def denominator(self) -> float:
        """Returns the part of all denominators."""
        return math.fsum(self.denominators)

    @property
    def preconditioner(self) -> float:
        """Returns the preconditioner's share of the growth: learning rate, momentum and denominators."""
        return math.fsum((self.lr, self.momentum, *self.denominators))

    @property
    def landscape(self) -> float:
        """Returns the landscape's share: what of the growth remains."""
        return self.growth - self.preconditioner

    @property
    def restarted(self) -> bool:
        """Returns whether there is no growth to speak of: another top eigenvector, or a chi that is not above 0."""
        return math.isnan(self.growth)


def split(before: Edge | Mark, after: Edge | Mark, operator: Operator | None = None) -> Split:
    """Returns the growth of ln chi between two readings, parted into preconditioner and landscape.

    Args:
        before, after: two readings of one training, in order, or what was kept of them.
        operator: H at the later one, on the parameters of the earlier: one product then measures the landscape's part
            beside the remainder. What both differ by is of second order.

    Raises:
        UsageError: an operator on other parameters.

    >>> from foreshock.curvature import edge
    >>> w = torch.tensor([1.0, 1.0], requires_grad=True)
    >>> optimizer = torch.optim.SGD([w], lr=0.1)
    >>> first = edge(lambda: 2.5 * w[0] ** 2 + 0.5 * w[1] ** 2, optimizer)
    >>> optimizer.param_groups[0]["lr"] = 0.2
    >>> found = split(first, edge(lambda: 5.0 * w[0] ** 2 + 0.5 * w[1] ** 2, optimizer))
    >>> round(math.exp(found.growth), 3), round(math.exp(found.lr), 3), round(math.exp(found.landscape), 3)
    (4.0, 2.0, 2.0)
    """
    one = before if isinstance(before, Mark) else Mark.of(before)
    two = after if isinstance(after, Mark) else Mark.of(after)
    place = {id(param): i for i, param in enumerate(one.params)}
    pairs = [(place.get(id(param)), i) for i, param in enumerate(two.params)]
    both = [(i, j) for i, j in pairs if i is not None]
    old, new = {i for i, _ in both}, {j for _, j in both}
    rows = torch.stack(
        [_changes(one, two, i, j) for i, j in both] or [torch.zeros(7, dtype=torch.float64)]
    ).tolist()
    first = math.fsum(row[4] for row in rows) + _masses(one, [i for i in range(len(one.params)) if i not in old])
    second = math.fsum(row[5] for row in rows) + _masses(two, [j for j in range(len(two.params)) if j not in new])
    overlap = abs(math.fsum(row[6] for row in rows))
    kept = [math.fsum(row[0] for row in rows) / (first or 1.0), math.fsum(row[1] for row in rows) / (second or 1.0)]
    joined = max(0.0, 1.0 - min(kept))
    if not (one.chi > 0 and two.chi > 0 and overlap >= SAME and joined <= JOINED):
        nothing = (math.nan,) * len(two.params)
        return Split(math.nan, math.nan, math.nan, nothing, math.nan, overlap, joined, two.params)
    denominators, lrs, momenta = [0.0] * len(two.params), [], []
    for (i, j), row in zip(both, rows, strict=True):
        mass = (row[0] / first + row[1] / second) / 2
        if mass == 0.0:
            continue
        whole = (row[2] / first + row[3] / second) / 2
        scale, gain = _step(one.factors[i], two.factors[j]), _step(one.gains[i], two.gains[j])
        filtered = gain - _step(one.corrections[i], two.corrections[j])
        lrs.append(mass * (scale - gain))
        momenta.append(mass * filtered)
        denominators[j] = whole - lrs[-1] - momenta[-1]
    measured = math.nan if operator is None else _measured(one, two, operator, first)
    return Split(
        math.log(two.chi / one.chi), math.fsum(lrs), math.fsum(momenta), tuple(denominators), measured, overlap, joined,
        two.params,
    )


def mode_denominator(reading: Edge | Mark) -> float:
    """Returns exp(u' (ln P) u): the geometric mean of the denominators in the unstable direction.

    It falls while a second moment decays and rises once it fills again, whatever the landscape does. NaN where the
    learning rate is 0, and with it the direction.

    >>> from foreshock.curvature import edge
    >>> w = torch.tensor([1.0, 2.0], dtype=torch.float64, requires_grad=True)
    >>> round(mode_denominator(edge(lambda: 2.5 * w[0] ** 2, torch.optim.Adagrad([w], lr=0.1))), 6)
    5.0
    """
    mark = reading if isinstance(reading, Mark) else Mark.of(reading)
    rows = []
    for y, weight, factor in zip(mark.vector, mark.tensors, mark.factors, strict=True):
        if isinstance(weight, Tensor):
            for w, z in chunks(weight, y):
                kept = w.clamp(min=_TINY)
                masses = z * z / kept
                whole = masses.sum()
                rows.append(torch.stack([whole, whole * math.log(factor or 1.0) - masses @ torch.log(kept)]))
        elif factor:
            rows.append(torch.stack([_quadratic(weight, y), _logarithm(weight, y.double(), factor)]))
    whole, logarithm = _total(rows).tolist()
    return math.exp(logarithm / whole) if whole else math.nan


_TINY = 1e-300  # in the place of a W of 0, whose y is 0
_SMALL = 1e-4  # exponent h of (M^h - M^-h)/2h, which is ln M up to (h ln M)^2/6


def _logarithm(weight: Block, y: Tensor, factor: float) -> Tensor:
    """Returns u' (ln factor - ln W) u for W^(1/2) u = y."""
    u = weight.power(y, -0.5)
    bent = weight.power(u, _SMALL) - weight.power(u, -_SMALL)
    return (u * u).sum() * math.log(factor) - (u * bent).sum() / (2 * _SMALL)


def _step(before: float, after: float) -> float:
    """Returns ln after - ln before, 0 where one of them has none (a gain that is not positive)."""
    return math.log(after) - math.log(before) if 0 < before < math.inf and 0 < after < math.inf else 0.0


def _quadratic(weight: Tensor | Block, y: Tensor) -> Tensor:
    """Returns y' W^-1 y."""
    if isinstance(weight, Tensor):
        return torch.stack([(z * z / w.clamp(min=_TINY)).sum() for w, z in chunks(weight, y)]).sum()
    wide = y.double()
    return (wide * weight.power(wide, -1.0)).sum()


def _masses(mark: Mark, places: Sequence[int]) -> float:
    """Returns y' W^-1 y of some of the parameters."""
    return float(_total([_quadratic(mark.tensors[i], mark.vector[i]) for i in places])) if places else 0.0


def _total(parts: Sequence[Tensor]) -> Tensor:
    return torch.stack(list(parts)).sum(0)


def _changes(one: Mark, two: Mark, i: int, j: int) -> Tensor:
    """Returns seven sums over one parameter.

    Of u^2 on entries that both steps move, at each end; of the same times d ln W; of all u^2; and y . z.
    """
    old, new, y, z = one.tensors[i], two.tensors[j], one.vector[i], two.vector[j]
    if isinstance(old, Tensor) and isinstance(new, Tensor):
        sums = []
        for w0, w1, y0, y1 in chunks(old, new, y, z):
            alive = ((w0 > 0) & (w1 > 0)).double()
            w0, w1 = w0.clamp(min=_TINY), w1.clamp(min=_TINY)
            change = torch.log(w1 / w0) * alive
            m0, m1 = y0 * y0 / w0, y1 * y1 / w1
            sums.append(
                torch.stack([m0 @ alive, m1 @ alive, m0 @ change, m1 @ change, m0.sum(), m1.sum(), y0 @ y1])
            )
        return torch.stack(sums).sum(0)
    nothing = torch.zeros((), dtype=torch.float64, device=y.device)
    rows = []
    for way, own, other, sign in ((y, old, new, -1.0), (z, new, old, 1.0)):
        mine, its = _quadratic(own, way), _quadratic(other, way)
        moves = (mine > 0) & (its > 0)
        change = torch.where(moves, sign * torch.log(its / mine), nothing)
        rows.append((torch.where(moves, mine, nothing), mine * change, mine))
    (m0, c0, all0), (m1, c1, all1) = rows
    return torch.stack([m0, m1, c0, c1, all0, all1, (y.double() * z.double()).sum()])


def _measured(one: Mark, two: Mark, operator: Operator, mass: float) -> float:
    """Returns ln(y' H_after y / (chi y' W^-1 y)) of the earlier direction y: the landscape's part to first order."""
    if [id(param) for param in operator.params] != [id(param) for param in one.params]:
        raise UsageError("split(operator=...): it must be on the parameters of the earlier reading, in their order")
    product = operator @ list(one.vector)
    sign = -1.0 if two.maximize else 1.0
    place = {id(param): i for i, param in enumerate(two.params)}
    bends = []
    for y, h, param in zip(one.vector, product, one.params, strict=True):
        at = place.get(id(param))
        l2 = 0.0 if at is None else two.l2[at]
        bends.append((y.double() * (sign * h.double() + l2 * y.double())).sum())
    ratio = float(_total(bends)) / (one.chi * mass)
    return math.log(ratio) if ratio > 0 else math.nan
