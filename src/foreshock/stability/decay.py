"""When an adaptive optimizer whose second moment decays freely reaches its edge, in closed form. Never imports torch.

While the squared gradient is far below v, v shrinks by beta2 a step whatever the loss, so that P = sqrt(v) + eps, all
else standing still, meets the value at which chi = (lr/2) c k/P is 1 at a step that can be told long before. With the
bias corrections of Adam c = (1 - beta1)/((1 + beta1)(1 - beta1^t)) and v stands for v/(1 - beta2^t).

Exact in one dimension, L = k theta^2/2. With several, k is the curvature lambda_max(H) at the most: a bound.

Source: Bai et al. 2025, arXiv 2506.04805 (the decay, and the threshold); the closed forms are derived from it.
"""

from __future__ import annotations

import math

from foreshock.errors import UsageError

__all__ = ["critical_denominator", "crossing_step", "eps_crit", "waiting_time"]


def critical_denominator(curvature: float, *, lr: float, beta1: float = 0.9, step: float = math.inf) -> float:
    """Returns the denominator P below which a mode is unstable: lr k (1 - beta1)/(2 (1 + beta1) (1 - beta1^step)).

    Args:
        curvature: k, of the mode, in units of loss per squared parameter.
        lr: learning rate.
        beta1: of the momentum, an average of gradients; 0 for none.
        step: number of the step, from 1, where the momentum is corrected for its bias; infinite late in a run, and
            where it is not.

    Raises:
        UsageError: a number out of range.

    >>> round(critical_denominator(1.0, lr=0.1), 7)
    0.0026316
    """
    _positive(curvature=curvature, lr=lr)
    _coefficient("beta1", beta1)
    if not step >= 1:
        raise UsageError(f"step={step!r}: steps are counted from 1")
    return lr * curvature * (1 - beta1) / (2 * (1 + beta1)) / _corrected(beta1, step)


def eps_crit(curvature: float, *, lr: float, beta1: float = 0.9, step: float = math.inf) -> float:
    """Returns the eps from which on chi cannot reach 1, whatever v does: 1/P is never above 1/eps.

    The same number as `critical_denominator` at the top of the spectrum. In the first steps, where the momentum's bias
    correction enlarges the step, more is needed: give `step`.

    Args:
        curvature: lambda_max(H), not preconditioned.
        lr: learning rate.
        beta1: as there.
        step: as there.

    Raises:
        UsageError: a number out of range.

    >>> round(eps_crit(120.0, lr=0.02), 3)
    0.063
    """
    return critical_denominator(curvature, lr=lr, beta1=beta1, step=step)


def waiting_time(v: float, beta2: float, critical: float) -> float:
    """Returns the steps that a freely decaying v takes until sqrt(v) is critical: 2 ln(sqrt(v)/critical)/-ln(beta2).

    Negative where that is past; infinite for beta2 = 1. Deviation 1 from the paper's notes, which divide by
    1 - beta2: the same for beta2 near 1, and this one is exact.

    Args:
        v: the second moment as the optimizer stores it; a correction of its bias has faded when the edge is reached.
        beta2: its coefficient.
        critical: the denominator at the edge, less eps.

    Raises:
        UsageError: a number out of range.

    >>> round(waiting_time(1e-2, 0.999, 1e-3), 1)
    9205.7
    """
    _positive(v=v, critical=critical)
    if not 0 < beta2 <= 1:
        raise UsageError(f"beta2={beta2!r}: must be above 0 and at most 1")
    return math.inf if beta2 == 1 else (math.log(v) - 2 * math.log(critical)) / -math.log(beta2)


def crossing_step(
    v: float, beta2: float, critical: float, *, step: int | None = None, beta1: float = 0.9, eps: float = 0.0
) -> int | None:
    """Returns the first step at which P is at or below its critical value while v decays freely: chi >= 1 there.

        sqrt(v beta2^(t - step)/(1 - beta2^t)) + eps <= critical/(1 - beta1^t)

    None where it never is: eps alone is above. Any v of the decoupled stretch gives the same answer.

    Args:
        v: the second moment as the optimizer stores it, not corrected.
        beta2: its coefficient.
        critical: `critical_denominator` late in the run; for another optimizer lr q k/(2 - lr weight_decay) with q the
            gain of its momentum.
        step: number, from 1, of the step that v has seen the gradient of; None for an optimizer without bias
            corrections, and the answer is then counted from that step.
        beta1: of the momentum, which is corrected for its bias where `step` is given; 0 where it is not.
        eps: added to the root.

    Raises:
        UsageError: a number out of range.

    >>> crossing_step(1e-6, 0.99, critical_denominator(1.0, lr=0.01), step=500)
    766
    """
    _positive(v=v, critical=critical)
    _coefficient("beta1", beta1)
    _coefficient("beta2", beta2)
    if not eps >= 0 or (step is not None and step < 1):
        raise UsageError(f"crossing_step: eps must not be negative and steps count from 1, got eps={eps!r}, {step=!r}")
    begun = 0 if step is None else step

    def reached(t: int) -> bool:
        """Compares logarithms, which neither over- nor underflow."""
        now = critical if step is None else critical / _corrected(beta1, t)
        seen = 0.0 if step is None else math.log(_corrected(beta2, t))
        decayed = (t - begun) * math.log(beta2) if beta2 else (-math.inf if t > begun else 0.0)
        return now > eps and math.log(v) + decayed - seen <= 2 * math.log(now - eps)

    if reached(begun):
        return begun
    if critical <= eps:  # only the bias correction of the first steps can do it
        t = begun + 1
        while step is not None and critical / _corrected(beta1, t) > eps and _corrected(beta1, t) < 1:
            if reached(t):
                return t
            t += 1
        return None
    # not yet: the bias correction of the momentum works against v at first, after its minimum chi only rises
    ahead = 1
    while not reached(begun + ahead):
        ahead *= 2
    below, above = begun + ahead // 2, begun + ahead
    while above - below > 1:
        middle = (below + above) // 2
        below, above = (below, middle) if reached(middle) else (middle, above)
    return above


def _corrected(beta: float, step: float) -> float:
    """Returns 1 - beta^step, also where that is hardly more than nothing."""
    return -math.expm1(step * math.log(beta)) if beta else 1.0


def _positive(**given: float) -> None:
    for name, value in given.items():
        if not 0 < value < math.inf:
            raise UsageError(f"{name}={value!r}: must be a positive number")


def _coefficient(name: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UsageError(f"{name}={value!r}: must be at least 0 and below 1")
