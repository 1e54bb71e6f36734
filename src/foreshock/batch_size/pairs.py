"""One step's unbiased estimates of tr Sigma and |G|^2, from squared gradient norms at two batch sizes."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any, NamedTuple

from foreshock.errors import UsageError


class Pair(NamedTuple):
    """tr Sigma, the trace of the covariance of one example's gradient, and |G|^2 of the gradient without noise.

    Each is unbiased, and each may be negative: they are to be averaged over steps before one is divided by the other.
    """

    tr_sigma: float
    g_sq: float


def pair(small_sq_norms: Any, big_sq_norm: Any, *, small: Any, big: float) -> Pair:
    """Returns the unbiased estimates from gradients of small batches and that of a big one which they are part of.

    With s the mean of the |g_b|^2 and S = |g_B|^2: |G|^2 = (B S - b s) / (B - b), tr Sigma = (s - S) / (1/b - 1/B).
    Small batches of several sizes count by their sizes, s = sum b_i |g_i|^2 / sum b_i, and b is their mean size. Where
    they make up the big batch, B tr Sigma is then the sum of squares between them over its degrees of freedom,
    sum b_i |g_i - g_B|^2 / (n - 1).

    Each gradient is the mean over the examples of its batch. The small batches need not make up the big one.

    >>> pair([6.0, 2.0], 3.0, small=8, big=16)  # two halves
    Pair(tr_sigma=16.0, g_sq=2.0)

    Args:
        small_sq_norms: |g_b|^2 of each small batch, or their mean.
        big_sq_norm: |g_B|^2.
        small: b, or the size of each small batch; in examples.
        big: B.

    Raises:
        UsageError: sizes that are not positive or not below B, or not as many of them as there are norms.

    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1; the weights for several sizes are this library's.
    """
    norms, sizes = floats(small_sq_norms), floats(small)
    if len(sizes) not in (1, len(norms)) or not norms:
        raise UsageError(f"pair(small=...): must be one size or one for each of {len(norms)} norms, got {len(sizes)}")
    if not all(size > 0 for size in sizes):
        raise UsageError(f"pair(small=...): sizes must be positive, got {small!r}")
    total = math.fsum(sizes)
    b, size = total / len(sizes), float(big)
    if not b < size < math.inf:
        raise UsageError(f"pair(big=...): must be above the mean size of the small batches, {b:g}, got {big!r}")
    if len(sizes) == 1:
        s = math.fsum(norms) / len(norms)
    else:
        s = math.fsum(each * norm for each, norm in zip(sizes, norms, strict=True)) / total
    whole = float(big_sq_norm)
    return Pair((s - whole) / (1 / b - 1 / size), (size * whole - b * s) / (size - b))


def adaptdl_pair(local_sq_norms: Any, total_sq_norm: Any, *, scale: float = 1.0) -> Pair:
    """Returns AdaptDL's estimates from the n small batches that a step's batch is made of.

    With loc the mean of the |g_b|^2 and tot = |g_B|^2: sqr = (n tot - loc) / (n - 1),
    var = (loc - tot) scale / (n - 1), scale = B / B_0: var is then tr Sigma / B_0, the variance at the batch size B_0.
    With scale = B it is `pair`.

    >>> adaptdl_pair([6.0, 2.0], 3.0, scale=16)
    Pair(tr_sigma=16.0, g_sq=2.0)

    Args:
        local_sq_norms: |g_b|^2 of each of the n >= 2 equal small batches.
        total_sq_norm: |g_B|^2 of their mean.
        scale: B over the size that the variance is wanted at.

    Raises:
        UsageError: fewer than two small batches.

    Source: Qiao et al. 2021 (Pollux), arXiv 2008.12260, and its code.
    """
    norms = floats(local_sq_norms)
    n = len(norms)
    if n < 2:
        raise UsageError(f"adaptdl_pair(local_sq_norms=...): must be of two small batches or more, got {n}")
    loc, tot = math.fsum(norms) / n, float(total_sq_norm)
    return Pair((loc - tot) * float(scale) / (n - 1), (n * tot - loc) / (n - 1))


def floats(values: Any) -> list[float]:
    """Returns a number, a sequence, an array or a tensor of them as a list."""
    values = values.tolist() if hasattr(values, "tolist") else values
    if isinstance(values, (str, bytes)):
        raise UsageError(f"batch sizes and squared norms are numbers; got {values!r}")
    if isinstance(values, Iterable):
        return [each for value in values for each in floats(value)]
    return [float(values)]
