"""Curvature from losses alone: along a step that was taken, and the learning rate at which the loss would rise.

No gradient and no product: forward passes on the same batch, .35 of a gradient each. They work wherever the model runs:
fused attention, compiled modules, FSDP. Both see the loss itself, kinks and all, not its quadratic model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor

from foreshock.curvature.harmless import harmless
from foreshock.curvature.space import Space
from foreshock.curvature.surroundings import modules_of
from foreshock.errors import UsageError

LOSS_ROUNDING = 4.0  # units of the last place that two evaluations of a mean loss may differ by
# Ratios of two learning rates tried one after the other while the rise is looked for: 1 + 2 * NARROWEST, growing.
NARROWEST, WIDEST = 1 / 16, 4.0
FARTHEST = 2.0**40  # how far from the start the learning rate is looked for, up and down


@dataclass(frozen=True, slots=True)
class StepCurvature:
    """Curvature along a step, from the losses before and after it.

    Attributes:
        bend: 2 (L(theta + delta) - L(theta) - g . delta), which is delta'H delta averaged over the step: its weight at
            theta + s delta is 2 (1 - s).
        slope: g . delta.
        change: L(theta + delta) - L(theta).
        chi_step: bend / (-2 slope), edge 1: the loss rose where it is above 1. NaN where the step went uphill.
        rounding: error that rounding of the losses and of g . delta may have put into `bend`.
    """

    bend: float
    slope: float
    change: float
    chi_step: float
    rounding: float


def step_curvature(
    closure: Callable[[], Tensor], before: Tensor | float, gradient: Sequence[Tensor | None], step: Sequence[Tensor]
) -> StepCurvature:
    """Returns the curvature along the step that was just taken; one forward pass.

    Args:
        closure: loss on the same batch, at the parameters as they are now, after the step. It is run without gradients;
            what it does to random streams and to the buffers of modules that its code names is undone.
        before: the loss before the step, on that batch.
        gradient: g at that loss, tensors like `step`; None counts as zeros.
        step: theta_{t+1} - theta_t.

    Raises:
        UsageError: the closure does not return one number, or gradient and step are not alike.
    """
    if len(gradient) != len(step):
        raise UsageError(f"step_curvature(gradient, step): {len(gradient)} gradients for {len(step)} steps")
    after, kind = _evaluator(closure, ())()
    first = float(before.detach() if isinstance(before, Tensor) else before)
    pairs = [(g.detach(), d.detach()) for g, d in zip(gradient, step, strict=True) if g is not None]
    slope, terms = 0.0, 0.0
    if pairs:
        exact = torch.float64 if pairs[0][0].device.type != "mps" else torch.float32
        products = [(g.to(exact) * d.to(exact)).flatten() for g, d in pairs]
        sums = torch.stack([torch.stack([p.sum(), p.abs().sum()]) for p in products]).sum(0).tolist()
        slope, terms = float(sums[0]), float(sums[1])
    type_before = before.dtype if isinstance(before, Tensor) and before.is_floating_point() else torch.float64
    unit = max(torch.finfo(kind).eps, torch.finfo(type_before).eps)
    stored = torch.finfo(pairs[0][1].dtype).eps if pairs else 0.0  # a step is a difference of stored parameters
    rounding = 2 * (LOSS_ROUNDING * unit * (abs(first) + abs(after)) + stored * terms)
    change = after - first
    bend = 2 * (change - slope)
    return StepCurvature(bend, slope, change, bend / (-2 * slope) if slope < 0 else math.nan, rounding)


@dataclass(frozen=True, slots=True)
class CriticalLr:
    """The learning rate at which a step along a direction would just raise the loss.

    Attributes:
        lr: smallest learning rate found at which the loss rises: within 1/16 above the truth. Infinity where it rises
            nowhere within 2^40 starts, 0 where it rises however small the step.
        sharpness: 2 / lr, the critical sharpness.
        bracket: the largest learning rate tried below it, where the loss does not rise, and `lr`.
        loss: L(theta).
        forwards: forward passes used.
        converged: whether the bracket is as narrow as asked.
    """

    lr: float
    sharpness: float
    bracket: tuple[float, float]
    loss: float
    forwards: int
    converged: bool


def critical_lr(
    closure: Callable[[], Tensor], params: Sequence[Tensor], direction: Sequence[Tensor], *, start: float = 1.0,
    precision: float = 1 / 16,
) -> CriticalLr:
    """Returns the learning rate eta at which L(theta + eta direction) passes L(theta): 2 / curvature along -gradient.

    The learning rate moves away from `start`, in strides that grow, until the loss rises or no longer does; then the
    bracket is bisected. 5 passes from the last value, 9 from a factor of 2 away; the second computes the first loss
    again, as a check. Where the loss falls and rises several times along the direction it is one of the crossings.
    With momentum this says when the *loss* rises, not when training goes unstable: at the edge of stability of Adam
    it is far above the learning rate in use.

    The parameters' storage is exchanged for the moment, never written to: values, version counters and graphs that
    hold the parameters stay as they are, also when the closure raises. Views of a parameter that were made before do
    not follow.

    Args:
        closure: the loss on one batch; the same at each call. It is run without gradients, each time from the same
            state of the random streams, so that dropout is the same; those, and buffers of modules that its code
            names, are put back.
        params: theta.
        direction: the step at a learning rate of 1: -gradient, or `planned_step` over lr.
        start: learning rate to begin with, the one in use or the last one found.
        precision: relative width of the bracket to stop at.

    Raises:
        UsageError: the loss is not finite to begin with, or differs when it is computed again; a start or a precision
            that is not positive; directions unlike the parameters.

    Source: Kalra et al. 2026, A scalable measure of loss landscape curvature: critical sharpness. Theirs moves the
    model by its own step and back; here storage is exchanged, so that nothing is rounded on the way back.
    """
    if not 0 < start < math.inf or not 0 < precision < 1:
        raise UsageError(
            f"critical_lr: start must be positive and precision between 0 and 1, got {start!r} and {precision!r}"
        )
    space = Space(params)
    moves = space.split(space.flatten(list(direction)))
    forwards = 0

    evaluate = _evaluator(closure, params)

    def loss_at(lr: float) -> float:
        nonlocal forwards
        forwards += 1
        with _moved(params, moves, lr):
            return evaluate()[0]

    def rises(lr: float) -> bool:
        return not loss_at(lr) <= first  # NaN counts as a rise

    first = loss_at(0.0)
    if not math.isfinite(first):
        raise UsageError(f"critical_lr(closure): the loss is {first} before any step")
    again = loss_at(0.0)
    if first != again:
        raise UsageError(
            f"critical_lr(closure): the loss was {first!r} and then {again!r} at the same parameters; the closure "
            "must compute the same batch in the same way each time"
        )
    low, high, stride = 0.0, math.inf, 1 + 2 * max(precision, NARROWEST)
    if rises(start):
        high = start
        while low == 0.0 and high > start / FARTHEST:
            low, high = (0.0, high / stride) if rises(high / stride) else (high / stride, high)
            stride = min(stride * stride, WIDEST)
    else:
        low = start
        while high == math.inf and low < start * FARTHEST:
            low, high = (low, low * stride) if rises(low * stride) else (low * stride, math.inf)
            stride = min(stride * stride, WIDEST)
    found = low > 0.0 and high < math.inf
    while found and high / low > 1 + precision:
        middle = math.sqrt(low * high)
        low, high = (low, middle) if rises(middle) else (middle, high)
    lr = 0.0 if low == 0.0 else high
    return CriticalLr(lr, 2 / lr if lr else math.inf, (low, high), first, forwards, found)


def _evaluator(closure: Callable[[], Tensor], params: Sequence[Tensor]) -> Callable[[], tuple[float, torch.dtype]]:
    """Returns a function that evaluates the closure, always from the same random state, and undoes what it touched."""
    modules = modules_of(closure)

    def evaluate() -> tuple[float, torch.dtype]:
        with harmless(params, modules), torch.no_grad():
            value: object = closure()
        if isinstance(value, Tensor) and value.numel() == 1 and value.is_floating_point():
            return float(value), value.dtype
        if isinstance(value, (int, float)):
            return float(value), torch.float64
        found = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise UsageError(f"the closure must return one real number, got {found}; take its mean, or its sum")

    return evaluate


@contextmanager
def _moved(params: Sequence[Tensor], moves: Sequence[Tensor], lr: float) -> Iterator[None]:
    """Lets the parameters stand at theta + lr * move."""
    held = [param.data for param in params]
    try:
        if lr:
            for param, at, move in zip(params, held, moves, strict=True):
                param.data = torch.add(at, move, alpha=lr)
        yield
    finally:
        for param, at in zip(params, held, strict=True):
            param.data = at
