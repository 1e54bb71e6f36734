"""The Nyquist probe: reads lr q/P off an optimizer that nobody has described, by pushing a copy back and forth."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
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

LEVELS = 6  # averages of neighbours taken of the response: a pole b is damped by ((1 - b)/2)^LEVELS
SAMPLES = 48  # of the impulse response, for filters of up to ORDER poles
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
    when the average stands still, 16-40 steps for the usual optimizers.

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
    why = frozen.complaint(first)
    if why:
        raise _cannot(optimizer, why)
    response, taken, error = _settle(frozen, steps, tol)
    if not error <= max(1e-4, tol):
        raise _cannot(optimizer, f"its response still changes by {error:.1g} after {taken} steps")
    l2, decays = zip(*frozen.decay(first), strict=True)
    fitted = _fitted(frozen, response, optimizer) if filters else ()
    return NyquistReading(tuple(response), l2, decays, fitted, taken, error)


def _settle(frozen: Frozen, steps: int, tol: float) -> tuple[list[Tensor], int, float]:
    """Returns (response, steps taken, last relative change) to gradients of period 2."""
    floor = 32 * torch.finfo(frozen.params[0].dtype).eps
    error, taken, averages = float("inf"), LEVELS + 1, _averaged(frozen)
    last = next(averages)
    for response in islice(averages, max(1, steps - taken)):
        error = max(_change(new, old) for new, old in zip(response, last, strict=True))
        last, taken = response, taken + 1
        if error <= max(tol, floor):
            break
    return last, taken, error


def _averaged(frozen: Frozen) -> Iterator[list[Tensor]]:
    """Yields binomial averages over LEVELS + 1 neighbouring answers, each turned to the sign of the first."""
    before: list[list[Tensor]] = []
    for step, answer in enumerate(frozen.run((-1.0) ** t for t in range(1 << 30))):
        level = [each * (-1.0) ** step for each in answer]
        for depth in range(LEVELS):
            if depth == len(before):
                before.append(level)
                break
            mixed = [(one + two) / 2 for one, two in zip(before[depth], level, strict=True)]
            before[depth], level = level, mixed
        else:
            yield level


def _fitted(frozen: Frozen, response: Sequence[Tensor], optimizer: Optimizer) -> tuple[Filter, ...]:
    """Returns the momentum filter of each parameter, scaled to 1 at z = -1."""
    samples: list[list[Tensor]] = [[] for _ in response]
    weights = [each / each.square().sum().clamp(min=torch.finfo(each.dtype).tiny) for each in response]
    for answer in frozen.run([1.0, *[0.0] * (SAMPLES - 1)]):
        for kept, each, weight in zip(samples, answer, weights, strict=True):
            kept.append((each * weight).sum())
    found = []
    for kept in samples:
        series = torch.stack(kept).double().cpu().numpy()
        fitted = _rational(series) if series.any() else Filter((1.0,))
        if fitted is None:
            raise _cannot(optimizer, f"its momentum is no linear filter of up to {ORDER} poles")
        found.append(fitted)
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
