"""Linear momentum filters, and the step at which each goes unstable on a quadratic: the root locus. No torch here.

An optimizer with a frozen denominator moves along an eigenpair of P^-1/2 H P^-1/2 as

    theta_{t+1} = a theta_t - lr u_t,    u = Q(z) g,    g = lambda theta,    a = 1 - lr weight_decay

so its poles are the roots of z - a + k Q(z), k = lr lambda. The optimizer is stable up to the smallest k > 0 that puts
a root on the unit circle. For positive mixtures of one-pole averages that root is z = -1, an oscillation of period 2,
and k = (1 + a) / Q(-1). Cascades leave the circle elsewhere, and earlier.

Sources: Cohen et al. 2022, Adaptive Gradient Methods at the Edge of Stability, arXiv 2207.14484 (Adam's 38);
Lee and Lee 2026, The Road Taken (the filter view, and the cascade that leaves the circle off z = -1).
"""

from __future__ import annotations

import cmath
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache
from itertools import pairwise

import numpy as np

from foreshock.errors import UsageError
from foreshock.stability.polynomials import around_one, product, roots, total, value

__all__ = [
    "CriticalStep", "Filter", "ademamix", "cascade", "critical_step", "ema", "heavy_ball", "identity", "lion", "mix",
    "nadam", "nesterov", "qhm", "schedule_free", "spectral_radius",
]

OUTSIDE = 1e-9  # a root this far outside the unit circle grows; rounding in the roots of a polynomial stays below it
NEAR_CIRCLE = 3e-2  # roots of the crossing polynomial this close to the circle are looked at; too many do no harm
SNAP = 1e-6  # a numeric crossing this close (relative) to a closed form is that one
POLE_MARGIN = 1e-3  # many equal poles near 1 are known no better than this from their polynomial in double precision
TINY = 1e-9  # of the first unstable step found: what is unstable even there is unstable at once
HALVINGS = 1200  # enough to come down from any double to any other


@dataclass(frozen=True, slots=True)
class Filter:
    """A momentum filter u = b(x)/a(x) g with x = 1/z, the delay by one step: coefficients by rising power of x.

    Sums put filters side by side, products one after the other, a number scales.

    >>> 0.5 * identity() + 0.5 * Filter((0.5,), (1.0, -0.5))
    Filter(b=(0.75, -0.25), a=(1.0, -0.5))
    """

    b: tuple[float, ...]
    a: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        if not self.b or not self.a or self.a[0] == 0 or not all(map(math.isfinite, (*self.b, *self.a))):
            raise UsageError(
                f"a Filter needs finite coefficients b and a by rising power of 1/z with a[0] != 0; "
                f"given b={self.b}, a={self.a}"
            )

    def response(self, z: complex) -> complex:
        """Returns Q(z), the complex gain of the filter at z."""
        x = 1 / z
        return value(self.b, x) / value(self.a, x)

    def gain(self, z: float = -1.0) -> float:
        """Returns Q(z) for real z; by default at z = -1, the gain for an oscillation of period 2.

        >>> round(ema(0.9).gain(), 6)
        0.052632
        """
        return self.response(z).real

    def __add__(self, other: Filter) -> Filter:
        if self.a == other.a:
            return Filter(total(self.b, other.b), self.a)
        return Filter(total(product(self.b, other.a), product(other.b, self.a)), product(self.a, other.a))

    def __mul__(self, other: Filter | float) -> Filter:
        if isinstance(other, Filter):
            return Filter(product(self.b, other.b), product(self.a, other.a))
        return Filter(tuple(float(other) * each for each in self.b), self.a)

    __rmul__ = __mul__


@dataclass(frozen=True, slots=True)
class CriticalStep:
    """The k = lr lambda at which an optimizer leaves stability, and how it then oscillates.

    `frequency` is in radians per step: pi is the oscillation of period 2 at z = -1; `period` is in steps.
    """

    k: float
    frequency: float

    @property
    def period(self) -> float:
        """Returns the period of the first growing oscillation in steps, infinite when it does not oscillate."""
        return 2 * math.pi / self.frequency if self.frequency else math.inf

    @property
    def alternating(self) -> bool:
        """Returns whether the first growing oscillation has period 2, where k = (1 + a)/Q(-1)."""
        return self.frequency == math.pi


def identity() -> Filter:
    """Returns the filter of plain gradient descent, u = g."""
    return Filter((1.0,))


def heavy_ball(momentum: float, dampening: float = 0.0) -> Filter:
    """Returns u_t = momentum u_{t-1} + (1 - dampening) g_t, Q(-1) = (1 - dampening)/(1 + momentum).

    >>> round(critical_step(heavy_ball(0.9)).k, 9)
    3.8
    """
    return Filter((1.0 - dampening,), (1.0, -momentum))


def nesterov(momentum: float, dampening: float = 0.0) -> Filter:
    """Returns torch's Nesterov momentum, u = g + momentum * buffer, Q(-1) = (1 + 2 momentum)/(1 + momentum).

    >>> round(critical_step(nesterov(0.9)).k, 3)
    1.357
    """
    return identity() + momentum * heavy_ball(momentum, dampening)


def ema(beta: float) -> Filter:
    """Returns the exponential average u_t = beta u_{t-1} + (1 - beta) g_t, Q(-1) = (1 - beta)/(1 + beta).

    >>> round(critical_step(ema(0.9)).k, 9)
    38.0
    """
    return Filter((1.0 - beta,), (1.0, -beta))


def mix(gradient: float, average: float, beta: float) -> Filter:
    """Returns u = gradient * g + average * EMA_beta(g): S3, NAdam, QHM and Nesterov on an average are of this form.

    >>> round(critical_step(mix(0.1, 0.9, 0.9)).k, 2)
    13.57
    """
    return gradient * identity() + average * ema(beta)


def qhm(nu: float, beta: float) -> Filter:
    """Returns quasi-hyperbolic momentum, u = (1 - nu) g + nu EMA_beta(g) (Ma and Yarats 2019, arXiv 1810.06801).

    >>> round(critical_step(qhm(0.7, 0.9)).k, 4)
    5.9375
    """
    return mix(1.0 - nu, nu, beta)


def nadam(momentum: float, next_momentum: float, product: float, beta1: float) -> Filter:
    """Returns torch's NAdam at one step: c_g g + c_m EMA_beta1(g).

    c_g = (1 - m_t)/(1 - M_t) and c_m = m_{t+1}/(1 - M_t m_{t+1}), with m_t `momentum`, m_{t+1} `next_momentum` and M_t
    `product`, the product of m over the steps 1...t.
    """
    return mix((1.0 - momentum) / (1.0 - product), next_momentum / (1.0 - product * next_momentum), beta1)


def ademamix(beta1: float, beta3: float, alpha: float) -> Filter:
    """Returns AdEMAMix's mixture EMA_beta1 + alpha EMA_beta3 (Pagliardini et al. 2024, arXiv 2409.03137).

    >>> round(critical_step(ademamix(0.9, 0.9999, 8)).k, 2)
    37.71
    """
    return ema(beta1) + alpha * ema(beta3)


def lion(beta1: float, beta2: float) -> Filter:
    """Returns Lion's interpolation u = (1 - beta1) g + beta1 m; m = EMA_beta2(g) is read before its update.

    Q(-1) = (1 + beta2 - 2 beta1)/(1 + beta2) (Chen et al. 2023, arXiv 2302.06675).
    """
    return (1.0 - beta1) * identity() + beta1 * (Filter((0.0, 1.0)) * ema(beta2))


def schedule_free(beta: float, weight: float) -> Filter:
    """Returns Schedule-Free's filter from gradients at y to moves of y, at averaging weight c = `weight`.

    With z <- z - lr g, x <- (1 - c) x + c z, y = (1 - beta) z + beta x: Q = (1 - beta) + beta c/(1 - (1 - c)/z), so
    Q(-1) = (1 - beta) + beta c/(2 - c) (Defazio et al. 2024, arXiv 2405.15682; the form at finite c is derived).
    """
    return mix(1.0 - beta, beta, 1.0 - weight)


def cascade(*betas: float) -> Filter:
    """Returns exponential averages one after the other: EMA of EMA of ...

    >>> found = critical_step(cascade(0.7, 0.85))
    >>> round(found.k, 4), round(found.frequency / math.pi, 3)
    (0.6807, 0.088)
    """
    result = identity()
    for beta in betas:
        result = result * ema(beta)
    return result


def spectral_radius(filter: Filter, k: float, decay: float = 0.0) -> float:
    """Returns the largest absolute value among the roots of z - (1 - decay) + k Q(z): above 1 the step diverges.

    Arguments: `k` = lr times the eigenvalue of P^-1 H; `decay` = lr times the decoupled weight decay.

    >>> spectral_radius(identity(), 2.5)
    1.5
    """
    open_loop, loop = _loop(filter, decay)
    return float(np.abs(1 + roots(around_one(open_loop) + k * around_one(loop))).max())


@lru_cache(maxsize=256)
def critical_step(filter: Filter, decay: float = 0.0) -> CriticalStep:
    """Returns the smallest k = lr lambda > 0 beyond which the root locus of z - (1 - decay) + k Q(z) is unstable.

    Where a root crosses the unit circle, p(z) = A(z) + k B(z) and its mirror image z^n p(1/z) vanish together, so z is
    a root of A B* - A* B, whatever k: all crossings are candidates at once, and the roots for a k between neighbours
    say which of them is the first loss of stability. k is 0 where no positive step is stable (an uphill filter), and
    infinite where the filter is zero.

    Arguments: `decay` = lr times the decoupled weight decay.
    Errors: UsageError when the filter alone already grows (a pole outside the unit circle).

    >>> critical_step(identity())
    CriticalStep(k=2.0, frequency=3.141592653589793)
    """
    if not any(filter.b):
        return CriticalStep(math.inf, math.pi)
    pole = np.abs(1 + roots(around_one([Fraction(each) for each in filter.a]))).max(initial=0.0)
    if pole > 1 + POLE_MARGIN:
        raise UsageError(f"the filter has a pole at |z| = {pole:.6g} and grows by itself; use coefficients below 1")
    open_loop, loop = _loop(filter, decay)
    still, moving = around_one(open_loop), around_one(loop)

    def outside(k: float) -> float:  # > 0 where a root is outside, relative to its distance from z = 1
        found = roots(still + k * moving)
        found = found[found != 0]
        if np.isinf(found).any():
            return math.inf
        return float(((2 * found.real + np.abs(found) ** 2) / np.abs(found)).max(initial=-math.inf))

    exact = _real_crossings(filter, decay)
    crossings = [k for k in _crossings(open_loop, loop) if all(abs(k - known) > SNAP * known for known in exact)]
    crossings = sorted((*exact, *crossings))
    low, edge, high = 0.0, 0.0, math.nan
    for edge, right in pairwise((0.0, *crossings, 3.0 * (crossings[-1] if crossings else 4.0))):
        high = (edge + right) / 2
        if outside(high) > OUTSIDE:
            break
        low = high
    else:  # every crossing only touched the circle: go on until the locus is outside for good
        while outside(high) <= OUTSIDE:
            low, high = high, 2 * high
        edge = (low + high) / 2
    if edge in exact or (edge == 0 and outside(TINY * high) > OUTSIDE):
        return CriticalStep(edge, exact.get(edge, 0.0))
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        low, high = (low, middle) if outside(middle) > 0 else (middle, high)
    fastest = max(1 + roots(still + high * moving), key=abs)
    return CriticalStep(low, abs(cmath.phase(fastest)))


def _real_crossings(filter: Filter, decay: float) -> dict[float, float]:
    """Returns the closed forms {k: frequency} of the positive crossings at z = -1 and z = 1."""
    found = {}
    for z, distance, frequency in ((-1.0, 2.0 - decay, math.pi), (1.0, -decay, 0.0)):
        below = value(filter.a, z).real
        gain = value(filter.b, z).real / below if below else math.inf
        if gain and 0 < distance / gain < math.inf:
            found[distance / gain] = frequency
    return found


def _loop(filter: Filter, decay: float) -> tuple[list[Fraction], list[Fraction]]:
    """Returns (1 - (1 - decay) x) a(x) and x b(x), exact and of one length: polynomials in z, highest power first."""
    zero, stay = Fraction(0), 1 - Fraction(decay)
    a, b = ([Fraction(each) for each in side] for side in (filter.a, filter.b))
    open_loop = [left - stay * right for left, right in zip([*a, zero], [zero, *a], strict=True)]
    loop = [zero, *b]
    size = max(len(open_loop), len(loop))
    return open_loop + [zero] * (size - len(open_loop)), loop + [zero] * (size - len(loop))


def _crossings(open_loop: list[Fraction], loop: list[Fraction]) -> list[float]:
    """Returns every k > 0 that may put a pair of complex roots on the unit circle: a superset, up to rounding."""
    size = len(loop)
    both = [Fraction(0)] * (2 * size - 1)
    for i in range(size):
        for j in range(size):
            both[i + j] += open_loop[i] * loop[size - 1 - j] - open_loop[size - 1 - j] * loop[i]
    still, moving = around_one(open_loop), around_one(loop)
    found = []
    for root in roots(around_one(both)):
        if root.imag <= 0 or abs(2 * root.real + abs(root) ** 2) > NEAR_CIRCLE * abs(root):
            continue
        below = np.polyval(moving, root)
        k = float((-np.polyval(still, root) / below).real) if below else math.inf
        if 0 < k < math.inf:
            found.append(k)
    return found
