"""What a larger batch is worth: statistical efficiency, AdaScale's gain, and by how much the learning rate follows."""

from __future__ import annotations

import math
from dataclasses import dataclass

from foreshock.errors import UsageError

__all__ = ["RULES", "Gain", "efficiency", "gain", "lr_factor"]

RULES = ("adascale", "adam", "sqrt", "linear", "constant")
"""How the learning rate may follow the batch, see `lr_factor`."""


@dataclass(frozen=True, slots=True)
class Gain:
    """What a step at one batch size is worth in steps at another.

    Attributes:
        gain: progress of one step, in steps at the base size.
        efficiency: progress of one example, in examples at the base size: gain / (B/B_0).
        lr_factor: by which the learning rate is to be multiplied.
    """

    gain: float
    efficiency: float
    lr_factor: float


def gain(B: float, B_0: float, *, tr_sigma: float, g_sq: float, rule: str = "adascale") -> Gain:
    """Returns the gain of batch size B over B_0.

    With scale = B/B_0, var = tr Sigma/B_0 and sqr = |G|^2: gain = (var + sqr) / (var/scale + sqr). It is 1 at B_0,
    never more than the scale, and goes to (var + sqr)/sqr; in terms of the noise scale N it is (1 + N/B_0)/(1 + N/B),
    the ratio of the best learning rates of McCandlish et al. 2018 (arXiv 1812.06162, equation 2.7).

    Args:
        B, B_0: batch sizes.
        tr_sigma: trace of the covariance of single examples' gradients.
        g_sq: |G|^2, squared norm of the true gradient.
        rule: for `lr_factor`, one of `RULES`.

    Raises:
        UsageError: a size that is not positive, or moments that are negative, not finite or both 0.

    Source: Johnson et al. 2020 (AdaScale), arXiv 2007.05105; Qiao et al. 2021 (Pollux), arXiv 2008.12260.

    >>> found = gain(256, 64, tr_sigma=64.0, g_sq=1.0)  # a noise scale of 64: each example is worth 0.4 of before
    >>> round(found.gain, 6), round(found.efficiency, 6), round(found.lr_factor, 6)
    (1.6, 0.4, 1.6)
    """
    scale = _sizes(B, B_0)
    ok = all(math.isfinite(value) and value >= 0.0 for value in (tr_sigma, g_sq)) and tr_sigma + g_sq > 0.0
    if not ok:
        raise UsageError(
            f"gain: tr_sigma and g_sq are finite, not negative and not both 0, got {tr_sigma!r} and {g_sq!r}; an "
            "estimate of |G|^2 that is not positive says that the noise scale is undefined: average over more steps"
        )
    var = tr_sigma / B_0
    worth = (var + g_sq) / (var / scale + g_sq)
    return Gain(worth, worth / scale, _follow(rule, scale, worth))


def efficiency(B: float, B_c: float, *, base: float | None = None) -> float:
    """Returns the statistical efficiency of a batch size: 1/(1 + B/B_c), or (B_c + B_0)/(B_c + B) relative to a base.

    Args:
        B: the size.
        B_c: critical batch size.
        base: B_0, whose efficiency is 1; None for the limit of small batches.

    Source: McCandlish et al. 2018, arXiv 1812.06162, equation 2.11: (S/S_min - 1)(E/E_min - 1) = 1 gives
    E_min/E = 1/(1 + B/B_c).

    >>> efficiency(500, 500), efficiency(500, 500, base=500)
    (0.5, 1.0)
    """
    if not (B > 0 and B_c > 0):
        raise UsageError(f"efficiency: batch sizes are positive, got B={B!r} and B_c={B_c!r}")
    if math.isinf(B_c):
        return 1.0
    return 1.0 / (1.0 + B / B_c) if base is None else (B_c + base) / (B_c + B)


def lr_factor(old: float, new: float, rule: str = "sqrt", *, noise_scale: float | None = None) -> float:
    """Returns by how much the learning rate is to be multiplied when the batch goes from `old` to `new`.

    * "linear": new/old. Goyal et al. 2017, arXiv 1706.02677, for SGD at batches well below the noise scale.
    * "sqrt": its root, for Adam and its like. Malladi et al. 2022, arXiv 2205.10287.
    * "adascale": the gain, for SGD: linear below the noise scale, constant above. Needs the noise scale.
    * "adam": the root of the gain, for Adam and its like. Needs the noise scale.
    * "constant": 1.

    Args:
        old, new: batch sizes.
        rule: one of `RULES`.
        noise_scale: tr Sigma/|G|^2.

    Raises:
        UsageError: an unknown rule, a size that is not positive, or no noise scale where one is needed.

    >>> lr_factor(64, 256, "sqrt"), round(lr_factor(64, 256, "adascale", noise_scale=64), 6)
    (2.0, 1.6)
    """
    scale = _sizes(new, old)
    if rule not in ("adascale", "adam"):
        return _follow(rule, scale, 1.0)
    if noise_scale is None or not noise_scale >= 0.0:
        raise UsageError(
            f"lr rule {rule!r} needs the noise scale, got {noise_scale!r}; 'linear' and 'sqrt' do without it"
        )
    if math.isinf(noise_scale):
        return _follow(rule, scale, scale)
    return gain(new, old, tr_sigma=noise_scale, g_sq=1.0, rule=rule).lr_factor


def _follow(rule: str, scale: float, worth: float) -> float:
    factors: dict[str, float] = {
        "adascale": worth, "adam": math.sqrt(worth), "sqrt": math.sqrt(scale), "linear": scale, "constant": 1.0,
    }  # fmt: skip
    if rule not in factors:
        raise UsageError(f"lr rule: one of {', '.join(RULES)}, got {rule!r}")
    return factors[rule]


def _sizes(B: float, B_0: float) -> float:
    if not (B > 0 and B_0 > 0 and math.isfinite(B) and math.isfinite(B_0)):
        raise UsageError(f"batch sizes are positive numbers, got {B!r} and {B_0!r}")
    return B / B_0
