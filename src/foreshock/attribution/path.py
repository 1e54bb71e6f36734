"""The gradient averaged along a step: what every entry of the step did to the loss, exactly."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from foreshock.attribution.evaluate import Evaluation, Losses

__all__ = ["Path", "along", "column", "gauss", "integrate"]

Parts = list[Tensor | None]

CLOSE = 1e-3  # |<e, delta> - dL| / |dL| at which nodes are no longer doubled
RULE = 4  # nodes on a piece of the path: exact for polynomials of degree 7
LOOSE = 5.0  # the pieces' errors may add up to so many times that, where they cancel: kinks are as good as random
MOST = 128  # gradients that are spent: five halvings; kinks (ReLU, max) and float32 limit what more could do


@dataclass(frozen=True, slots=True)
class Path:
    """e = integral_0^1 grad L(theta_0 + s delta) ds.

    Attributes:
        gradient: e, one tensor for each parameter, float32 or wider; None where the step did not move it.
        total: <e, delta>.
        nodes: gradients that were taken.
    """

    gradient: tuple[Tensor | None, ...]
    total: float
    nodes: int


def gauss(n: int) -> list[tuple[float, float]]:
    """Returns the n Gauss-Legendre nodes on [0, 1] with their weights: exact for polynomials of degree 2n - 1.

    >>> round(sum(w * s**3 for s, w in gauss(2)), 12)
    0.25
    """
    at, weights = np.polynomial.legendre.leggauss(n)
    return [(float(s) / 2 + 0.5, float(w) / 2) for s, w in zip(at, weights, strict=True)]


def integrate(
    evaluation: Evaluation, losses: Losses, weights: Tensor, ends: tuple[Sequence[Tensor], Sequence[Tensor]],
    values: tuple[Tensor, Tensor], nodes: int | None,
) -> Path:  # fmt: skip
    """Returns the path gradient of sum_i w_i l_i between two points.

    With a number of nodes, one Gauss-Legendre rule. Else the path is halved where a piece's <e, delta> is not yet the
    change of the loss over that piece, so nodes are doubled where the loss bends (spikes, kinks) and nowhere else. It
    ends when the whole is right, and not by errors of the pieces that happen to cancel.

    Args:
        evaluation: opened.
        losses, weights: the losses and w.
        ends: the parameters' values before and after.
        values: the losses there, shape (n,).
        nodes: how many, or None.
    """
    before, after = ends
    wanted = [not torch.equal(start.to(end), end) for start, end in zip(before, after, strict=True)]
    if not any(wanted):
        return Path((None,) * len(before), 0.0, 0)
    first, last = values
    change = abs(float(((last - first) * weights).sum()))
    rounding = 2.0 * evaluation.eps * float((first.abs() * weights.abs()).sum())
    settled: Parts = [None] * len(before)
    open_: Parts = [None] * len(before)
    spent, off, sizes = 0, 0.0, 0.0  # gradients; the errors of settled pieces, with their signs and without
    pieces = [(0.0, 1.0, first, last)]
    while pieces:
        halves = []
        open_off = open_sizes = 0.0
        for left, right, at_left, at_right in pieces:
            part: Parts = [None] * len(before)
            rule = gauss(RULE if nodes is None else nodes)
            for s, w in rule:
                evaluation.put(before, after, left + (right - left) * s)
                _add(part, evaluation.gradient(losses, weights, wanted), w * (right - left))
            spent += len(rule)
            error = along(part, before, after) - float(((at_right - at_left) * weights).sum())
            if nodes is not None or abs(error) <= max(CLOSE * change * (right - left), rounding):
                _add(settled, part)
                off, sizes = off + error, sizes + abs(error)
            else:
                _add(open_, part)
                open_off, open_sizes = open_off + error, open_sizes + abs(error)
                halves.append((left, right, at_left, at_right))
        close = max(CLOSE * change, rounding)
        done = abs(off + open_off) <= close and sizes + open_sizes <= LOOSE * close
        if not halves or done or spent + 2 * len(halves) * RULE > MOST:
            _add(settled, open_)
            break
        open_ = [None] * len(before)
        pieces = []
        for left, right, at_left, at_right in halves:
            middle = (left + right) / 2
            evaluation.put(before, after, middle)
            at_middle = evaluation.losses(losses)
            pieces += [(left, middle, at_left, at_middle), (middle, right, at_middle, at_right)]
    return Path(tuple(settled), along(settled, before, after), spent)


def along(gradient: Sequence[Tensor | None], before: Sequence[Tensor], after: Sequence[Tensor]) -> float:
    """Returns <e, after - before>, summed in float64."""
    return sum(column(e, start, end) for e, start, end in zip(gradient, before, after, strict=True))


def column(e: Tensor | None, before: Tensor, after: Tensor) -> float:
    """Returns one tensor's share of <e, delta>."""
    if e is None:
        return 0.0
    return float((e.double() * (after.to(e.device).double() - before.to(e.device).double())).sum())


def _add(total: Parts, part: Sequence[Tensor | None], weight: float = 1.0) -> None:
    for i, each in enumerate(part):
        if each is None:
            continue
        held = total[i]
        if held is None:
            total[i] = each.detach().to(torch.promote_types(each.dtype, torch.float32)) * weight
        else:
            held.add_(each.detach().to(held), alpha=weight)
