"""Cures of preconditioner spikes: second moments raised so that chi of the step about to be taken is below the edge.

A spike of this kind ends by itself when the growing gradient has refilled v, which had decayed too far. `refill_` does
the same without the spike: it adds to v what the gradient of the unstable motion would have, c (H w)_i^2 with w the
unstable direction in parameters, as much as is needed. Entries that have no part in the mode keep their step size.
`floor_` raises all denominators that are below a floor: the least change of the largest weights, but it slows all that
was fast. Source: the mechanism is that of Bai et al. 2025, arXiv 2506.04805; the refill is derived from it.

Measured on 8 seeds of the two sines (6,000 steps of Adam, acted on at form S above 1): unguarded 117 spikes; floor to
0.9 none, but the loss ends 3.2 times higher (median; up to 27); refill to 0.9 none in 22 interventions, and the loss
ends at 0.80 of the unguarded one (at most 0.95). Cutting the learning rate of each such step leaves 44 spikes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.curvature import Edge, Operator
from foreshock.curvature.counterfactual import CLOSE, ROUNDS
from foreshock.curvature.edge import read_edge
from foreshock.errors import UsageError
from foreshock.guard.second_moments import Denominator, denominators, raised, write

__all__ = ["Raised", "floor_", "refill_"]

BELOW = 0.9  # chi afterwards: from there v takes some 1/(5 (1 - beta2)) steps to decay to the edge again. A refill to
# .9, .85, .8 took 24, 17, 13 interventions in 6,000 steps, and ended at .53, .56, .61 of the unguarded loss (4 seeds)
EXACT = 1e-9  # relative error of the rank-one equation when it counts as solved
MOST = 100  # trials of it
WIDER, LEAST = 4.0, 1e-300  # steps in which an interval for it is looked for, and where that is given up
NOTICED = 1.01  # growth of a denominator from which on it is counted as changed

Raise = Callable[[Denominator, float], Tensor]
"""From a denominator and the one number that is solved for to its new root, (n,)."""


@dataclass(frozen=True, slots=True)
class Raised:
    """What was done to the second moments.

    Attributes:
        how: "floor" or "refill".
        kappa: chi wanted.
        before: chi of the step about to be taken, as it was read.
        after: chi of it now: measured, or what the rank-one bound says, which is never above the true one where H >= 0.
        measured: which of the two.
        entries: denominators that grew by more than 1 %.
        largest: factor by which the one that grew most did; 1 where nothing had to be done.
        matvecs: products that it took.
    """

    how: str
    kappa: float
    before: float
    after: float
    measured: bool
    entries: int
    largest: float
    matvecs: int


def floor_(
    edge: Edge, optimizer: Optimizer | Sequence[Optimizer], operator: Operator | None = None, *, kappa: float = BELOW
) -> Raised:
    """Raises the second moments below a floor, the least one with which chi of the coming step is at most `kappa`.

    The floor is on P, one for all parameters: v_{t-1} is written such that P_t, with the step's own gradient in it,
    is at the floor, bias corrections, eps and amsgrad taken into account. Nothing is done where chi is at most kappa.

    Args:
        edge: a reading of the step about to be taken: at these parameters, with its gradient.
        optimizer: what it is a reading of; written to.
        operator: the H of that reading, if it is still at hand: chi is then measured with the change made, and the
            change enlarged until it is at most kappa. Without, the rank-one bound is solved: on crowded spectra another
            mode may be left above kappa.
        kappa: chi wanted.

    Raises:
        UsageError: kappa is not between 0 and 1; chi is not known; or what holds the edge has no second moment that
            could be raised (SGD, Lion, Muon, factored or quantized moments, before the first step). Nothing is changed.

    >>> import torch
    >>> from foreshock.curvature import edge
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 10.0], dtype=torch.float64))
    >>> optimizer, loss = torch.optim.Adagrad([w], lr=4.0), lambda: 5 * w[0] ** 2 + 0.05 * w[1] ** 2
    >>> done = floor_(edge(loss, optimizer), optimizer)
    >>> round(done.before, 6), round(edge(loss, optimizer).chi, 6), done.entries
    (2.0, 0.9, 2)
    """
    return _raise("floor", edge, optimizer, operator, kappa)


def refill_(
    edge: Edge, optimizer: Optimizer | Sequence[Optimizer], operator: Operator | None = None, *, kappa: float = BELOW
) -> Raised:
    """Refills the second moments along the unstable direction, as its spike would have, until chi is at most `kappa`.

        v_i <- v_i + c (H w)_i^2,   w = W^(1/2) u,   so that (H w)_i^2 = chi^2 u_i^2 / W_i

    with c solved for. The motion along the mode, which at chi < 1 shrinks by sqrt(beta1) a step under Adam, is left to
    die out. The arguments, what is raised, and when nothing is done: as in `floor_`.

    >>> import torch
    >>> from foreshock.curvature import edge
    >>> w = torch.nn.Parameter(torch.tensor([1.0, 10.0], dtype=torch.float64))
    >>> optimizer, loss = torch.optim.Adagrad([w], lr=4.0), lambda: 5 * w[0] ** 2 + 0.05 * w[1] ** 2
    >>> done = refill_(edge(loss, optimizer), optimizer)
    >>> round(done.before, 6), round(edge(loss, optimizer).chi, 6), done.entries
    (2.0, 0.9, 1)
    """
    return _raise("refill", edge, optimizer, operator, kappa)


def _raise(
    how: str, edge: Edge, optimizer: Optimizer | Sequence[Optimizer], operator: Operator | None, kappa: float
) -> Raised:
    if not 0.0 < kappa < 1.0:
        raise UsageError(f"{how}_(kappa=...): what chi is brought to, between 0 and 1 (the edge), got {kappa!r}")
    if not math.isfinite(edge.chi):
        raise UsageError(f"{how}_: the reading's chi is {edge.chi}, so that there is nothing to aim at")
    if edge.chi <= kappa:
        return Raised(how, kappa, edge.chi, edge.chi, True, 0, 1.0, 0)
    before, _, _ = denominators(edge, optimizer)
    cells, predicted = _solved(how, edge, optimizer, kappa)
    chi, measured, matvecs = predicted, False, 0
    for _ in range(ROUNDS if operator is not None else 0):
        assert operator is not None
        now = read_edge(
            operator, raised(edge.weights, cells), optimizer, tol=CLOSE, warm=[edge.vector], forms=False
        )
        chi, measured, matvecs = now.chi, True, matvecs + now.matvecs
        if chi <= kappa:
            break
        cells, _ = _solved(how, now, optimizer, kappa * (1 - 4 * CLOSE))
    growth = [after.P / one.P for one, after in zip(before, cells, strict=True)]
    largest, entries = max(float(each.max()) for each in growth), sum(int((each > NOTICED).sum()) for each in growth)
    for one, after in zip(before, cells, strict=True):
        write(one, after)
    return Raised(how, kappa, edge.chi, chi, measured, entries, largest, matvecs)


def _solved(
    how: str, edge: Edge, optimizer: Optimizer | Sequence[Optimizer], kappa: float
) -> tuple[list[Denominator], float]:
    """Returns denominators with which sum_i u_i^2 P_i/P'_i is kappa/chi, and the chi that this bound says."""
    cells, fixed, others = denominators(edge, optimizer)
    target = kappa / edge.chi
    if not cells or fixed >= target:
        names = " and ".join(others) or "the optimizer"
        raise UsageError(
            f"{how}: {fixed:.0%} of the edge is held by {names} without a second moment of its own for each entry that "
            "could be raised; cut the learning rate instead (CutLr)"
        )
    make, start, low = (_floored, *_span(cells)) if how == "floor" else (_refilled, _first(cells), 0.0)

    def value(x: float) -> float:
        sums = [(cell.masses * cell.P / ((make(cell, x) + cell.eps) * cell.front)).sum(dtype=torch.float64)
                for cell in cells]
        return fixed + float(torch.stack([each.to(sums[0].device) for each in sums]).sum())

    x = _root(value, target, start, low)
    return [replace(cell, root=make(cell, x)) for cell in cells], edge.chi * value(x)


def _floored(cell: Denominator, floor: float) -> Tensor:
    return cell.root.clamp(min=floor / cell.front - cell.eps)


def _refilled(cell: Denominator, c: float) -> Tensor:
    """Returns sqrt(root^2 + c u^2 P inside^2 / factor): v grows by c times the mode's squared gradient."""
    scale = c * (cell.inside**2 if cell.squared else 1.0) / cell.factor
    return torch.hypot(cell.root, (cell.masses * cell.P * scale).sqrt_())


def _span(cells: Sequence[Denominator]) -> tuple[float, float]:
    """Returns the mean of P over the mode, from which a floor is looked for upwards, and the least P."""
    return (
        sum(float((cell.masses * cell.P).sum(dtype=torch.float64)) for cell in cells),
        min(float(cell.P.min()) for cell in cells),
    )


def _first(cells: Sequence[Denominator]) -> float:
    """Returns the c at which roots would have grown by about their own size."""
    total = 0.0
    for cell in cells:
        more = cell.masses.square() * (cell.inside**2 if cell.squared else 1.0) / cell.factor
        total += float((more * cell.front**2 / cell.P).sum(dtype=torch.float64))
    return 1.0 / total if total > 0 else 1.0


def _root(value: Callable[[float], float], target: float, start: float, low: float) -> float:
    """Returns the x > 0 at which a falling function is `target`, from the side where it is not above.

    By the Illinois method on logarithms, in which the function is nearly straight for large x.
    """
    gap = _Gap(value, math.log(target))
    right = gap(high := max(start, 2.0 * low, LEAST))
    left = math.inf
    while right > 0.0:
        low, left = high, right
        right = gap(high := WIDER * high)
    while left == math.inf:
        now = gap(below := low or high / WIDER)
        low, left, high, right = (below, now, high, right) if now > 0.0 or below <= LEAST else (0.0, left, below, now)
    a, b, side = math.log(low), math.log(high), 0
    for _ in range(MOST):
        middle = b - (b - a) * right / (right - left)
        now = gap(math.exp(middle))
        if now > 0.0:
            a, left, right, side = middle, now, right / 2 if side > 0 else right, 1
        else:
            b, right, left, side = middle, now, left / 2 if side < 0 else left, -1
            if now >= -EXACT:
                break
    return math.exp(b)


@dataclass(frozen=True, slots=True)
class _Gap:
    """ln value(x) - aim: above 0 where x is too small."""

    value: Callable[[float], float]
    aim: float

    def __call__(self, x: float) -> float:
        return math.log(self.value(x)) - self.aim
