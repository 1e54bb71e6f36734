"""The gap at which the right class's gradient is absorbed: bounds in closed form, and what a loss really does."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from foreshock.errors import UsageError


def absorption_bounds(dtype: torch.dtype, classes: int) -> tuple[float, float]:
    """Returns the gaps, in nats, between which the right class's gradient becomes 0: (p ln 2, p ln 2 + ln(K - 1)).

    p_r is rounded to 1, and its gradient p_r - 1 to 0, once the wrong classes hold no more than half the spacing of
    floats above 1: sum_{k != r} exp(z_k - z_r) <= 2^-p, with p the significand's bits (the hidden one counted). With
    K - 1 equal rivals that is the upper bound. A sum that begins at the right class's 1 loses the rivals one by one, or
    lane by lane, and gets there earlier, down to the lower bound; so does one close rival among distant ones. The paper
    gives (p - 1) ln 2, the bound for truncation; floats are rounded to the nearest.

    Args:
        dtype: the type in which p_r is rounded: that of the logits, but float32 under autocast.
        classes: K >= 2.

    Raises:
        UsageError: fewer than two classes, or no floating type.

    Source: Liu, Cao, Li, Zhou 2026, arXiv 2605.06152, section 3, with rounding as described.

    >>> [round(bound, 3) for bound in absorption_bounds(torch.float32, 97)]
    [16.636, 21.2]
    """
    if not dtype.is_floating_point:
        raise UsageError(f"dtype = {dtype}; only floating types round")
    if classes < 2:
        raise UsageError(f"classes = {classes}; with fewer than 2 there is no wrong class")
    low = (1 - math.log2(torch.finfo(dtype).eps)) * math.log(2)
    return low, low + math.log(classes - 1)


def measured_threshold(
    loss: Callable[[Tensor, Tensor], Tensor], dtype: torch.dtype, classes: int, *, offset: float = 0.0,
    device: torch.device | str = "cpu",
) -> float:
    """Returns the least gap, in nats, at which a loss gives the right class a gradient of exactly 0, or inf.

    One row: the K - 1 wrong classes at `offset`, the right one above them; bisection over the values that the type can
    represent, so the answer is exact to one spacing of logits (1/16 for bfloat16 between 8 and 16). inf means that
    nothing is absorbed: the right class keeps a gradient as long as any wrong class does, until all underflow.

    Args:
        loss: (logits (1, K), target (1,)) -> scalar, differentiable.
        dtype: of the logits.
        classes: K >= 2.
        offset: where the logits lie. It is of no matter to losses that subtract the maximum first, and of much to those
            that form log sum exp(z) - z_r, as fused and sharded ones may.
        device: where to try; kernels differ.

    Raises:
        UsageError: as for `absorption_bounds`; or an offset so large that the type has no gaps left.

    >>> threshold = measured_threshold(torch.nn.functional.cross_entropy, torch.float32, 2)
    >>> low, high = absorption_bounds(torch.float32, 2)
    >>> low <= threshold < high + 1e-5
    True
    >>> measured_threshold(torch.nn.functional.cross_entropy, torch.float32, 2, offset=1e6)
    16.6875
    """
    low, high = absorption_bounds(dtype, classes)
    target = torch.zeros(1, dtype=torch.long, device=device)
    base = _rounded(offset, dtype)

    def gradient(top: float) -> Tensor:
        z = torch.full((1, classes), base, dtype=dtype, device=device)
        z[0, 0] = top
        return torch.autograd.grad(loss(z.requires_grad_(), target), z)[0][0]

    def vanished(top: float) -> bool:
        return gradient(top)[0].item() == 0

    # everything underflows there, in the type of the gradient
    below, above = base, _rounded(base + math.log(classes - 1) - math.log(_smallest(dtype)) + high - low + 8, dtype)
    if not math.isfinite(above) or above - below < low:
        raise UsageError(f"offset = {offset}: {dtype} has no gaps of {low:.0f} nats there")
    if not vanished(above):
        return math.inf
    while below < (middle := _rounded((below + above) / 2, dtype)) < above:
        below, above = (below, middle) if vanished(middle) else (middle, above)
    return above - base if gradient(above)[1:].any() else math.inf


def _rounded(value: float, dtype: torch.dtype) -> float:
    """Returns the nearest number that a type can represent."""
    return torch.tensor(value, dtype=torch.float64).to(dtype).item()


def _smallest(dtype: torch.dtype) -> float:
    """Returns the least positive number of a type, a subnormal one."""
    info = torch.finfo(dtype)
    return info.smallest_normal * info.eps
