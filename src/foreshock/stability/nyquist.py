"""The Nyquist probe: reads lr q/P off an optimizer that nobody has described, by pushing a copy back and forth."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass
from typing import overload

import numpy as np
import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability.filters import Filter
from foreshock.stability.frozen import Frozen
from foreshock.stability.twins import members

__all__ = ["NyquistReading", "nyquist_probe"]

BINOMIAL = np.array([math.comb(6, k) for k in range(7)]) / 2**6  # weights of neighbouring answers: they damp what a
# pole b leaves of the start by ((1 - b)/2)^6
SAMPLES = 28  # answers that a filter of up to ORDER poles is fitted to
ORDER = 6
FIT = 1e-7  # relative misfit at which an impulse response counts as that of a filter of an order


@dataclass(frozen=True, slots=True, eq=False)
class NyquistReading(Sequence[Tensor]):
    """What a Nyquist probe measured; as a sequence, lr q/P for each parameter.

    Attributes:
        tensors: lr q/P, the response to gradients of period 2, decay left out; 0 where a step moves nothing.
        l2: decay that passes through the gradient, for each parameter.
        decays: 1 - a, decay of the parameter by itself in one step, such as lr weight_decay of AdamW.
        filters: Q/Q(-1) for each parameter, where asked for: its `response(z)` at any frequency, with unit gain at -1.
        steps: how many steps of the copy the response took to settle.
        error: largest relative change of an entry over the last step.
    """

    tensors: tuple[Tensor, ...]
    l2: tuple[float, ...]
    decays: tuple[float, ...]
    filters: tuple[Filter, ...]
    steps: int
    error: float

    def __len__(self) -> int:
        return len(self.tensors)

    @overload
    def __getitem__(self, place: int) -> Tensor: ...
    @overload
    def __getitem__(self, place: slice) -> tuple[Tensor, ...]: ...
    def __getitem__(self, place: int | slice) -> Tensor | tuple[Tensor, ...]:
        return self.tensors[place]


def nyquist_probe(
    optimizer: Optimizer,
    grads: Sequence[Tensor | None] | None = None,
    *,
    steps: int = 400,
    tol: float = 1e-8,
    filters: bool = False,
) -> NyquistReading:
    """Returns lr q/P of any elementwise optimizer, measured on a copy; the optimizer itself is left as it is.

    The copy, in float64 where its class allows that, gets gradients +e, -e, +e ... while everything that is even in the
    gradient (second moments, counters) is set back before each step and everything odd (momenta) evolves. The move per
    -e converges to lr q/P. Neighbouring answers are averaged, which takes out the transients of slow momenta; it stops
    when the average stands still, 8-40 steps for the usual optimizers. Pushes are tiny: what an optimizer does to large
    gradients only, such as clipping its own update, is not seen.

    Args:
        optimizer: one torch optimizer.
        grads: read the step about to be taken with these gradients; by default the last one taken.
        steps: most steps of the copy.
        tol: relative change of every entry at which the response counts as settled.
        filters: measure the impulse response as well and fit the momentum filter to it, to see cascades that leave
            stability off period 2.

    Errors: UsageError where the copy cannot be stepped, before the first step without gradients, and where the step is
    not elementwise, not linear at frozen moments, or does not settle.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> round(nyquist_probe(torch.optim.SGD([weight], lr=0.5, momentum=0.9))[0][0].item(), 6)
    0.263158
    """
    [optimizer] = members(optimizer)
    frozen = Frozen(optimizer, grads)
    [first] = frozen.run([1.0])
    l2, decays = zip(*frozen.decay(first), strict=True)
    why = frozen.complaint(first, l2, decays)
    if why:
        raise _cannot(optimizer, why)
    response, sums, error = _settle(frozen, steps, tol, SAMPLES if filters else 0)
    if not error <= max(1e-4, tol):
        raise _cannot(optimizer, f"its response still changes by {error:.1g} after {len(sums)} steps")
    fitted = _fitted(sums, optimizer) if filters else ()
    return NyquistReading(tuple(response), l2, decays, fitted, len(sums), error)


def _settle(frozen: Frozen, steps: int, tol: float, least: int) -> tuple[list[Tensor], np.ndarray, float]:
    """Returns (response, sums over entries of each answer (steps, parameters), last relative change of an entry).

    The response is the binomial average over neighbouring answers to gradients of period 2, each turned to the sign of
    the first. Entries of a parameter share one filter, so their sum tells when to stop.
    """
    limit = max(tol, 32 * torch.finfo(frozen.params[0].dtype).eps)
    width = len(BINOMIAL)
    recent: deque[list[Tensor]] = deque(maxlen=width + 1)
    sums: list[np.ndarray] = []
    sign = 1.0
    for answer in frozen.run((-1.0) ** t for t in range(max(steps, width + 1))):
        recent.append(answer)
        sums.append(sign * torch.stack([each.sum() for each in answer]).double().cpu().numpy())
        sign = -sign
        if len(sums) >= max(least, width + 1):
            new, old = BINOMIAL @ sums[-width:], BINOMIAL @ sums[-width - 1 : -1]
            if (np.abs(new - old) <= limit * np.abs(new)).all():
                break
    answers = list(recent)
    last, before = _blend(answers[1:], -sign), _blend(answers[:-1], sign)
    error = max((_change(one, two) for one, two in zip(last, before, strict=True)), default=0.0)
    return last, np.stack(sums), error


def _blend(answers: Sequence[list[Tensor]], sign: float) -> list[Tensor]:
    """Returns the binomial average of neighbouring answers, the last of which has `sign`."""
    result = [torch.zeros_like(each) for each in answers[-1]]
    for weight, answer in zip(BINOMIAL[::-1], reversed(answers), strict=True):
        torch._foreach_add_(result, answer, alpha=sign * float(weight))
        sign = -sign
    return result


def _fitted(sums: np.ndarray, optimizer: Optimizer) -> tuple[Filter, ...]:
    """Returns the momentum filter of each parameter, scaled to 1 at z = -1.

    The answers, turned to the sign of the first, are the partial sums of the impulse response with alternating signs.
    """
    signs = (-1.0) ** np.arange(len(sums))[:, None]
    impulses = np.diff(sums, axis=0, prepend=0.0) * signs
    found = []
    for series in impulses.T:
        fitted = _rational(series) if series.any() else Filter((1.0,))
        if fitted is None:
            raise _cannot(optimizer, f"its momentum is no linear filter of up to {ORDER} poles")
        found.append(fitted * (1 / fitted.gain()))
    return tuple(found)


def _rational(series: np.ndarray) -> Filter | None:
    """Returns the filter of least order with an impulse response (Prony's method), None where none fits."""
    for order in range(ORDER + 1):
        target = series[order + 1 :]
        rows = np.stack(
            [series[order - back : len(series) - 1 - back] for back in range(order)] or [0.0 * target], axis=1
        )
        poles = np.linalg.lstsq(rows, target, rcond=1e-13)[0]
        misfit = target - rows @ poles
        if np.abs(misfit).max() <= FIT * np.abs(series).max():
            a = np.concatenate([[1.0], -poles[:order]])
            b = np.convolve(a, series)[: order + 1]
            return Filter(tuple(b.tolist()), tuple(a.tolist()))
    return None


def _change(new: Tensor, old: Tensor) -> float:
    if not new.numel():
        return 0.0
    gap = (new - old).abs() / new.abs().clamp(min=torch.finfo(new.dtype).tiny)
    return float(torch.where(new == old, 0.0, gap).max())


def _cannot(optimizer: Optimizer, why: str) -> UsageError:
    return UsageError(
        f"a Nyquist probe cannot read {type(optimizer).__name__}: {why}. Describe it with "
        "foreshock.stability.register(class, rule); for methods whose step is bounded look at generalized_sharpness"
    )
