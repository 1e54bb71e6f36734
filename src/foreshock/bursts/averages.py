"""Courses of the optimizers that divide an average of gradients by a root of an average of their powers.

After a burst at k = 0 its share of the numerator is a_k and its share of the p-th moment c_k; all else in the moment
is noise, of weight 1 - c_k in the long run. So

    u_k = a_k / ((c_k + quiet^p (rest))^(1/p) + eps),      and      sup|u| = (sum_k a_k^q c_k^(-q/p))^(1/q)

with 1/p + 1/q = 1 is Hoelder's inequality, with equality for the gradients that make it one. Sources: SoftSignSGD
2025, arXiv 2507.06464 (equal weights, the bound 1); the sums are derived. Each rule is in the conventions of torch, or
of its authors' code.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from itertools import count

from foreshock.bursts.rule import Burst, Settings, geometric, left, over

__all__ = [
    "adam", "adam_sup", "adamax", "adamax_sup", "ademamix", "ademamix_sup", "amsgrad", "fade", "hoelder", "nadam",
    "nadam_sup", "padam", "qhadam", "qhadam_sup", "radam", "radam_sup", "rectification", "s3", "s3_first", "s3_sup",
    "s3_total", "second", "slower",
]  # fmt: skip

NEGLIGIBLE = 1e-20  # a product of momenta this small changes no digit


def second(beta: float, k: int, burst: Burst) -> float:
    """Returns the average of squares k steps after the burst: the burst's share of it, and that of the noise."""
    share = (1 - beta) * math.pow(beta, k)
    return share + burst.power * max(0.0, left(beta, burst.step + k) - share)


def fade(s: Settings) -> float:
    """Returns what Adam's numerator keeps from step to step."""
    return s["beta1"]


def slower(s: Settings) -> float:
    """Returns what Adam's update is multiplied by from step to step after a burst.

    >>> round(slower({"beta1": 0.9, "beta2": 0.81}), 9)
    1.0
    """
    return over(s["beta1"], math.sqrt(s["beta2"]))


def adam(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Adam's updates: u_k = (1 - b1) b1^k / sqrt((1 - b2) b2^k) in the long run.

    At the first step of all it is 1, whatever the gradient.

    >>> next(adam({"beta1": 0.9, "beta2": 0.999, "eps": 1e-8}, Burst(step=1)))
    1.0
    """
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    for k in count():
        t = burst.step + k
        yield over((1 - beta1) * beta1**k / left(beta1, t), math.sqrt(second(beta2, k, burst) / left(beta2, t)) + eps)


def adam_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of Adam: (1 - b1)/sqrt((1 - b2)(1 - b1^2/b2)) in the long run, by gradients that grow by b2/b1.

    >>> [round(adam_sup({"beta1": 0.9, "beta2": beta2}), 3) for beta2 in (0.999, 0.99, 0.95, 0.9)]
    [7.27, 2.345, 1.165, 1.0]
    >>> round(adam_sup({"beta1": 0.9, "beta2": 0.999}, 1), 9)
    1.0
    """
    beta1, beta2 = s["beta1"], s["beta2"]
    sums = over((1 - beta1) ** 2, 1 - beta2) * geometric(over(beta1**2, beta2), step)
    return math.sqrt(sums * left(beta2, step)) / left(beta1, step)


def amsgrad(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields AMSGrad's updates: the second moment stays at its largest, so that u_k = (1 - b1) b1^k / sqrt(1 - b2)."""
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    most = burst.power * left(beta2, burst.step - 1)
    for k in count():
        t = burst.step + k
        most = max(most, second(beta2, k, burst))
        yield over((1 - beta1) * beta1**k / left(beta1, t), math.sqrt(most / left(beta2, t)) + eps)


def padam(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Padam's updates, those of Adam with v^p in the place of its root."""
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    for k in count():
        t = burst.step + k
        below = (math.sqrt(second(beta2, k, burst)) + eps) ** (2 * s["p"]) / math.sqrt(left(beta2, t))
        yield over((1 - beta1) * beta1**k / left(beta1, t), below)


def adamax(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields Adamax's updates: u_k = (1 - b1) (b1/b2)^k, the denominator being max(b2^k |burst|, noise)."""
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    for k in count():
        noise = burst.quiet if burst.step + k > 1 else 0.0
        yield over((1 - beta1) * beta1**k / left(beta1, burst.step + k), max(beta2**k, noise) + eps)


def adamax_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of Adamax: (1 - b1)/(1 - b1/b2) in the long run, by gradients that grow by 1/b2."""
    beta1, beta2 = s["beta1"], s["beta2"]
    return (1 - beta1) * geometric(over(beta1, beta2), step) / left(beta1, step)


def _momentum(s: Settings, step: float) -> float:
    return s["beta1"] * (1 - 0.5 * math.pow(0.96, step * s["momentum_decay"] if s["momentum_decay"] else 0.0))


def _product(s: Settings, step: float) -> float:
    """Returns the product of NAdam's momenta up to a step."""
    product, t = 1.0, 0
    while t < step and product > NEGLIGIBLE:
        t += 1
        product *= _momentum(s, t)
    return product if t >= step else 0.0


def nadam(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields NAdam's updates: u_0 = (1 - b1^2)/sqrt(1 - b2) in the long run, as its numerator holds g once more."""
    beta1, beta2, eps = s["beta1"], s["beta2"], burst.floor(s["eps"])
    product = _product(s, burst.step - 1)
    for k in count():
        t = burst.step + k
        now, following = _momentum(s, t), _momentum(s, t + 1)
        product *= now
        above = following / (1 - product * following) * (1 - beta1) * beta1**k
        above += 0.0 if k else (1 - now) / (1 - product)
        yield over(above, math.sqrt(second(beta2, k, burst) / left(beta2, t)) + eps)


def nadam_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of NAdam."""
    now, following, product = _momentum(s, step), _momentum(s, step + 1), _product(s, step)
    share = following / (1 - product * following) * (1 - s["beta1"])
    first, ratio = share + (1 - now) / (1 - product), over(s["beta1"] ** 2, s["beta2"])
    later = share**2 * ratio * geometric(ratio, step - 1) if step > 1 else 0.0
    return math.sqrt(over(first**2 + later, 1 - s["beta2"]) * left(s["beta2"], step))


def rectification(beta2: float, step: float) -> float:
    """Returns RAdam's r_t, 0 while rho_t <= 5 and it steps without a denominator (Liu et al. 2019, arXiv 1908.03265).

    >>> [round(rectification(0.999, t), 3) for t in (5, 6, 1000, math.inf)]
    [0.0, 0.026, 0.645, 1.0]
    """
    longest = 2 / (1 - beta2) - 1
    power = beta2**step
    length = longest - (2 * step * power / (1 - power) if power else 0.0)
    if length <= 5:
        return 0.0
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))


def radam(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields RAdam's updates: those of Adam times r_t, without bounds in the first steps, which do not divide."""
    for k, update in enumerate(adam(s, burst)):
        ratio = rectification(s["beta2"], burst.step + k)
        yield ratio * update if ratio else math.inf


def radam_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of RAdam; inf in the steps that do not divide."""
    ratio = rectification(s["beta2"], step)
    return ratio * adam_sup(s, step) if ratio else math.inf


def qhadam(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields QHAdam's updates: the gradient is mixed into both averages (Ma and Yarats 2019, arXiv 1810.06801)."""
    beta1, beta2, nu, nu2 = s["beta1"], s["beta2"], s["nu"], s["nu2"]
    eps = burst.floor(s["eps"])
    for k in count():
        t = burst.step + k
        above = nu * (1 - beta1) * beta1**k / left(beta1, t) + (0.0 if k else 1 - nu)
        below = nu2 * second(beta2, k, burst) / left(beta2, t) + (1 - nu2) * (burst.power if k else 1.0)
        yield over(above, math.sqrt(below) + eps)


def qhadam_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of QHAdam."""
    beta1, beta2 = s["beta1"], s["beta2"]
    above, below = s["nu"] * (1 - beta1) / left(beta1, step), s["nu2"] * (1 - beta2) / left(beta2, step)
    ratio = over(beta1**2, beta2)
    later = over(above**2, below) * ratio * geometric(ratio, step - 1) if step > 1 else 0.0
    return math.sqrt(over((1 - s["nu"] + above) ** 2, 1 - s["nu2"] + below) + later)


def ademamix(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields AdEMAMix's updates; its slow average outlives v (Pagliardini et al. 2024, arXiv 2409.03137)."""
    beta1, beta2, beta3, eps = s["beta1"], s["beta2"], s["beta3"], burst.floor(s["eps"])
    for k in count():
        t = burst.step + k
        above = (1 - beta1) * beta1**k / left(beta1, t) + s["alpha"] * (1 - beta3) * beta3**k
        yield over(above, math.sqrt(second(beta2, k, burst) / left(beta2, t)) + eps)


def ademamix_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of AdEMAMix."""
    beta1, beta2, beta3 = s["beta1"], s["beta2"], s["beta3"]
    fast, slow = (1 - beta1) / left(beta1, step), s["alpha"] * (1 - beta3)
    pairs = ((fast * fast, beta1 * beta1), (2 * fast * slow, beta1 * beta3), (slow * slow, beta3 * beta3))
    sums = sum(weight * geometric(over(ratio, beta2), step) for weight, ratio in pairs if weight)
    return math.sqrt(over(sums * left(beta2, step), 1 - beta2))


def s3(s: Settings, burst: Burst) -> Iterator[float]:
    """Yields S3's updates: u_0 = (1 - b^2)^c and u_k = ((1 - b) b^(k+1))^c, c = 1 - 1/p.

    >>> [round(each, 4) for each, _ in zip(s3({"beta": .95, "beta2": .95, "p": 3, "nesterov": True}, Burst()), "ab")]
    [0.2118, 0.1267]
    """
    beta, beta2, p = s["beta"], s["beta2"], s["p"]
    later = 1 if s["nesterov"] else 0
    for k in count():
        above = _share(beta, k, later)
        share = _share(beta2, k, later)
        rest = max(0.0, left(beta2, burst.step + k + later) - share)
        yield over(above, _root(share, rest, burst.quiet, p) + burst.floor(s.get("eps", 0.0)))


def _share(beta: float, k: int, later: int) -> float:
    """Returns the weight of a gradient k steps ago: with the Nesterov mix that of the newest is 1 - b^2."""
    return 1 - beta**2 if later and not k else (1 - beta) * math.pow(beta, k + later)


def _root(share: float, rest: float, quiet: float, p: float) -> float:
    top = max(1.0, quiet)
    return top * math.pow(share * math.pow(1 / top, p) + rest * math.pow(quiet / top, p), 1 / p)


def s3_first(s: Settings) -> float:
    """Returns (1 - b^2)/(1 - b2^2)^(1/p); without the Nesterov mix (1 - b)/(1 - b2)^(1/p)."""
    later = int(s["nesterov"])
    return _share(s["beta"], 0, later) / math.pow(_share(s["beta2"], 0, later), 1 / s["p"])


def s3_total(s: Settings) -> float:
    """Returns D of S3: with one beta (1 - b^2)^c + (1 - b)^c b^(2c)/(1 - b^c), without Nesterov (1 - b)^c/(1 - b^c).

    >>> usual = {"beta": 0.95, "beta2": 0.95, "nesterov": True}
    >>> [round(s3_total({**usual, "p": p}), 2) for p in (1, 1.5, 2, 3, 6)]
    [inf, 21.46, 8.7, 3.98, 1.95]
    """
    ratio = over(s["beta"], s["beta2"] ** (1 / s["p"]))
    later = int(s["nesterov"])
    second = _share(s["beta"], 1, later) / _share(s["beta2"], 1, later) ** (1 / s["p"]) if s["beta"] else 0.0
    return s3_first(s) + second * geometric(ratio)


def s3_sup(s: Settings, step: float = math.inf) -> float:
    """Returns sup|u| of S3: (1 - b^(t+1))^(1 - 1/p) with one beta, and more with two.

    >>> one = {"beta": 0.95, "beta2": 0.95, "p": 3.0, "nesterov": True}
    >>> s3_sup(one), round(s3_sup(one, 1), 4)
    (1.0, 0.2118)
    >>> [round(s3_sup({**one, "beta": 0.9, "beta2": two}), 2) for two in (0.999, 0.95)]
    [3.61, 1.09]
    """
    beta, beta2, p, later = s["beta"], s["beta2"], s["p"], int(s["nesterov"])
    if beta == beta2:
        return float(left(beta, step + later) ** (1 - 1 / p))
    return hoelder(lambda k: _share(beta, k, later), lambda k: _share(beta2, k, later), beta, beta2, p=p, step=step)


def hoelder(
    above: Callable[[int], float], below: Callable[[int], float], fade: float, forget: float, *, p: float, step: float
) -> float:
    """Returns (sum_k a_k^q c_k^(-q/p))^(1/q) over k < step; from k = 1 on a_k falls by `fade`, c_k by `forget`."""
    if p == 1:  # the largest of the quotients
        first, second = over(above(0), below(0)), over(above(1), below(1)) if step > 1 else 0.0
        last = over(above(int(step) - 1), below(int(step) - 1)) if math.isfinite(step) else 0.0
        return math.inf if fade > forget and math.isinf(step) else max(first, second, last)
    q = p / (p - 1)
    sizes = [over(above(k), math.pow(below(k), 1 / p)) for k in (0, 1)]
    top = max(sizes)
    if not math.isfinite(top):
        return math.inf
    ratio = math.pow(over(fade, math.pow(forget, 1 / p)), q) if fade else 0.0
    later = math.pow(sizes[1] / top, q) * geometric(ratio, step - 1) if step > 1 and sizes[1] else 0.0
    return top * math.pow(math.pow(sizes[0] / top, q) + later, 1 / q)
