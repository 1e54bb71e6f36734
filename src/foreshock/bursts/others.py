"""Courses of the optimizers that are no plain quotient of two averages: sums, signs, differences, raw gradients.

Each is in the conventions of torch, or of its authors' code; expectations over the signs of the noise are exact but for
sign methods, whose averages of noise count as Gaussian.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count, repeat

from foreshock.bursts.averages import second
from foreshock.bursts.rule import Burst, Settings, geometric, left, over

__all__ = [
    "adabelief", "adadelta", "adadelta_sup", "adafactor", "adafactor_sup", "adagrad", "adan", "adan_decay", "adan_sup",
    "lion", "qhm", "rmsprop", "rmsprop_sup", "sgd", "signsgd", "yogi",
]  # fmt: skip

ENOUGH = 1e-15  # of a sum, beside which the rest of a series does not count
MOST = 200_000  # terms of a series


def sgd(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields SGD's updates, in gradients of the burst: whatever its size, momentum^k of it (torch's conventions)."""
    mu, share = s["momentum"], 1 - s["dampening"] if s["momentum"] and burst.step > 1 else 1.0
    for k in count():
        held = share * mu**k
        yield (0.0 if k else 1.0) + mu * held if s["nesterov"] else held


def qhm(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields the updates of quasi-hyperbolic momentum, in gradients of the burst (Ma and Yarats 2019, 1810.06801)."""
    for k in count():
        yield s["nu"] * (1 - s["momentum"]) * s["momentum"] ** k + (0.0 if k else 1 - s["nu"])


def rmsprop(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields RMSprop's updates: 1/sqrt(1 - alpha) at the burst, centered over sqrt(alpha); momentum keeps them.

    >>> plain = {"alpha": 0.99, "momentum": 0.5, "centered": False, "eps": 0.0}
    >>> [round(each, 6) for each, _ in zip(rmsprop(plain, Burst()), "ab")]
    [10.0, 5.0]
    """
    alpha, mu = s["alpha"], s["momentum"]
    below = second(alpha, 0, burst)
    if s["centered"]:
        before = burst.power * (1 - alpha) / (1 + alpha) * left(alpha * alpha, burst.step - 1)
        below = max(0.0, below - (1 - alpha) ** 2 - alpha**2 * before)
    first = over(1.0, math.sqrt(below) + burst.floor(s["eps"]))
    for k in count():
        yield first * mu**k if k == 0 or mu else 0.0


def rmsprop_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of RMSprop, 1/sqrt(1 - alpha)/(1 - momentum); none when centered, as constant gradients show."""
    if s["centered"]:
        return math.inf
    return 1 / math.sqrt(1 - s["alpha"]) * geometric(s["momentum"], step)


def adagrad(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Adagrad's updates: 1 at the burst, and no more; `quiet` is the root of the sum that it meets."""
    before = burst.quiet if burst.step > 1 else 0.0
    yield 1 / (math.hypot(1.0, before) + burst.floor(s["eps"]))
    yield from repeat(0.0)


def adadelta(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Adadelta's updates in its usual moves, as it has no other unit: 1/sqrt(1 - rho) at the burst."""
    yield 1 / math.sqrt(second(s["rho"], 0, burst))
    yield from repeat(0.0)


def adadelta_sup(s: Settings, step: float = math.inf) -> float:
    """Returns the most that a gradient can make of Adadelta's update, in root mean squares of those before it."""
    return 1 / math.sqrt(1 - s["rho"])


def adafactor(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Adafactor's updates where the whole tensor bursts: the clip at a root mean square of d holds them.

    A burst of one coordinate among n is held at d sqrt(n). At step t the second moment forgets 1 - t^-0.8.
    """
    forgets = min(1.0, burst.step ** s["beta2_decay"])
    yield min(s["d"], over(1.0, math.sqrt(forgets + burst.power * (1 - forgets))))
    yield from repeat(0.0)


def adafactor_sup(s: Settings, step: float = math.inf) -> float:
    """Returns the most of a tensor's root mean square."""
    return s["d"]


def lion(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Lion's mean signs: 1 until noise drowns what momentum kept of the burst (Chen et al. 2023, 2302.06675)."""
    beta1, beta2 = s["beta1"], s["beta2"]
    for k in count():
        held = 0.0 if k == 0 else beta1 * (1 - beta2) * beta2 ** (k - 1)
        noise = beta1 * _of_noise(beta2, burst.step + k - 1)
        yield 1.0 if not k and beta1 < 1 else _sign(held, burst.quiet * (1 - beta1), burst.quiet * noise)


def signsgd(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields the mean signs of averaged gradients, momentum 0 for sign descent (Bernstein et al. 2018, 1802.04434)."""
    mu = s["momentum"]
    for k in count():
        noise = mu * _of_noise(mu, burst.step + k - 1)
        held = (1 - mu) * mu**k
        yield 1.0 if not k else _sign(held, burst.quiet * (1 - mu), burst.quiet * noise)


def _of_noise(beta: float, steps: float) -> float:
    """Returns the standard deviation of an average of so many signs."""
    return math.sqrt((1 - beta) / (1 + beta) * left(beta * beta, max(0.0, steps)))


def _sign(signal: float, own: float, noise: float) -> float:
    """Returns the mean sign of signal +- own + noise N(0, 1)."""
    if noise == 0:
        return sum(math.copysign(0.5, signal + each) if signal + each else 0.0 for each in (own, -own))
    return sum(math.erf((signal + each) / (noise * math.sqrt(2))) for each in (own, -own)) / 2


def adabelief(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields AdaBelief's updates: its denominator has the burst less what the average took of it, b1 of it.

    (1 - b1)/(b1 sqrt(1 - b2)) at the burst (Zhuang et al. 2020, arXiv 2010.07468).
    """
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    t, m = burst.step, 0.0
    drift = burst.power * (1 - beta1) / (1 + beta1) * left(beta1 * beta1, t - 1)
    below = burst.power * beta1**2 * (1 + (1 - beta1) / (1 + beta1)) * left(beta2, t - 1)
    for k in count():
        g, power = (0.0, burst.power) if k else (1.0, 1.0)
        below = beta2 * below + (1 - beta2) * beta1**2 * (power + m * m + drift)
        m = beta1 * m + (1 - beta1) * g
        yield over(m / left(beta1, t + k), math.sqrt(below / left(beta2, t + k)) + eps)


def yogi(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Yogi's updates: v takes the burst as Adam's does and gives it back by (1 - b2) noise a step."""
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    below = burst.power if burst.step > 1 else 0.0
    for k in count():
        t, power = burst.step + k, burst.power if k else 1.0
        below += (1 - beta2) * (power if below < power else -power if below > power else 0.0)
        yield over((1 - beta1) * beta1**k / left(beta1, t), math.sqrt(below / left(beta2, t)) + eps)


def adan(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Adan's updates: gradient and its differences, over the size of g + b2 (g - g_before).

    `quiet` is the size of a gradient beside the burst (Xie et al. 2022, arXiv 2208.06677, as in its code, where the
    betas are what is kept).
    """
    beta1, beta2, beta3, eps = s["beta1"], s["beta2"], s["beta3"], burst.floor(s["eps"])
    new, old = (1 + beta2) ** 2, beta2**2  # the shares of a gradient and of the one before
    t, m, d = burst.step, 0.0, 0.0
    below = burst.power * (new + old) * left(beta3, t - 1)
    for k in count():
        now, before = (1.0 if k == 0 else 0.0), (1.0 if k == 1 else 0.0)
        first = t + k == 1  # the code lets the first difference be 0
        m = beta1 * m + (1 - beta1) * now
        d = beta2 * d + (0.0 if first else (1 - beta2) * (now - before))
        sizes = (now or burst.power), (before or burst.power)
        below = beta3 * below + (1 - beta3) * (1.0 if first else new * sizes[0] + old * sizes[1])
        above = m / left(beta1, t + k) + beta2 * d / left(beta2, t + k)
        yield over(above, math.sqrt(below / left(beta3, t + k)) + eps)


def adan_decay(s: Settings) -> float:
    """Returns what Adan's update is multiplied by from step to step in the end."""
    return over(max(s["beta1"], s["beta2"]), math.sqrt(s["beta3"]))


def adan_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of Adan in the long run: Hoelder's inequality in y = g + b2 (g - g_before), whose squares it sums.

    The numerator is a filter of y; its weights are summed up.
    """
    beta1, beta2, beta3 = s["beta1"], s["beta2"], s["beta3"]
    if adan_decay(s) >= 1 or not beta3:
        return math.inf
    m = d = g = total = 0.0
    weight = 1.0 - beta3
    for k in range(MOST):
        before = g
        g = ((1.0 if k == 0 else 0.0) + beta2 * g) / (1 + beta2)
        m = beta1 * m + (1 - beta1) * g
        d = beta2 * d + (1 - beta2) * (g - before)
        term = (m + beta2 * d) ** 2 / weight
        total += term
        weight *= beta3
        if k > 10 and term < ENOUGH * total:
            break
    return math.sqrt(total)
