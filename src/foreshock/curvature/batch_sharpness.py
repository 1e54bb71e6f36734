"""Batch sharpness: the curvature that stochastic training sees along its own gradients, with standard errors.

With mini-batches it is E[g_B'H_B g_B] / E|g_B|^2, each batch's Hessian along that batch's gradient, that settles at
2/lr, while the top eigenvalue of the full Hessian stays below (Andreyev and Beneventano, Edge of Stochastic Stability).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreshock.curvature.harmless import harmless
from foreshock.curvature.hessian import Hessian
from foreshock.curvature.space import dot
from foreshock.curvature.surroundings import modules_of, surroundings
from foreshock.curvature.trace import Estimate
from foreshock.errors import UsageError

FEWEST = 10  # batches before a standard error is believed enough to stop at


@dataclass(frozen=True, slots=True)
class BatchSharpness:
    """Curvature along the gradient of a batch, over batches.

    The two averages differ, since batches with large gradients weigh more in the first: publications use either.

    Attributes:
        ratio_of_means: mean of u'H_B u over mean of g_B'u; its standard error by the delta method.
        mean_of_ratios: mean of u'H_B u / g_B'u.
        adaptive: whether u is W g_B, so that the edge is 1; else it is g_B, and the edge 2 / lr.
        batches: used.
        matvecs: products used, one a batch.
        converged: whether both standard errors are within the target.
    """

    ratio_of_means: Estimate
    mean_of_ratios: Estimate
    adaptive: bool
    batches: int
    matvecs: int
    converged: bool


def batch_sharpness(
    loss_fn: Callable[[Any], Tensor], params: Sequence[Tensor], batches: Iterable[Any], *, weights: Any = None,
    target: float = 0.005, max_batches: int = 1000,
) -> BatchSharpness:
    """Returns the batch sharpness at the parameters as they are; a gradient and a product for each batch.

    Random streams, buffers and `.grad` are put back at the end.

    Args:
        loss_fn: `loss_fn(batch)` is the mean loss of a batch, with its graph.
        params: theta.
        batches: random batches of the size in training, as many as may be needed.
        weights: W, `EdgeWeights` or a tensor or `Block` for each parameter: u = W g_B, the adaptive batch sharpness.
            None for the plain one, u = g_B.
        target: standard error to stop at, relative to the value; of both averages.
        max_batches: to stop at in any case.

    Raises:
        UsageError: fewer than two batches, a target that is not positive, or curvature that is not finite.

    Source: Andreyev and Beneventano 2024, arXiv 2412.20553, whose code stops at a standard error of .5 % or at 1000
    batches; it stops its mean of ratios by the error of the ratio of means, this does by each one's own.
    """
    if not target > 0 or max_batches < 2:
        raise UsageError(
            f"batch_sharpness: target must be positive and max_batches 2 or more, got {target!r} and {max_batches!r}"
        )
    modules = [inner for root in modules_of(loss_fn) for inner in root.modules()]
    tops: list[float] = []
    bottoms: list[float] = []
    found: tuple[Estimate, Estimate] | None = None
    converged = False
    with harmless(params, modules), surroundings(modules, params[0].device, exact=True):
        for batch in batches:
            hessian = Hessian(loss_fn(batch), params)
            gradient = hessian.start()
            assert gradient is not None
            if weights is None:
                direction = gradient
            else:
                conditioned = hessian.conditioned(weights)
                direction = conditioned.root(conditioned.root(gradient))
            tops.append(dot(direction, hessian.multiply(direction)))
            bottoms.append(dot(direction, gradient))
            if not math.isfinite(tops[-1]) or not bottoms[-1] > 0:
                raise UsageError(
                    f"batch_sharpness(batches): batch {len(tops) - 1} has curvature {tops[-1]:g} along a gradient of "
                    f"squared length {bottoms[-1]:g}, of which no ratio can be had"
                )
            if len(tops) >= FEWEST:
                found = _estimates(tops, bottoms)
                converged = all(each.standard_error <= target * abs(each.value) for each in found)
            if converged or len(tops) >= max_batches:
                break
    if len(tops) < 2:
        raise UsageError(f"batch_sharpness(batches): a standard error needs two batches or more, got {len(tops)}")
    found = found or _estimates(tops, bottoms)
    return BatchSharpness(*found, weights is not None, len(tops), len(tops), converged)


def _estimates(tops: Sequence[float], bottoms: Sequence[float]) -> tuple[Estimate, Estimate]:
    """Returns ratio of means and mean of ratios."""
    top, bottom = torch.tensor(tops, dtype=torch.float64), torch.tensor(bottoms, dtype=torch.float64)
    count = len(tops)
    ratio = float(top.mean() / bottom.mean())
    error = float((top - ratio * bottom).std() / bottom.mean()) / math.sqrt(count)
    each = top / bottom
    return (
        Estimate(ratio, error, count),
        Estimate(float(each.mean()), float(each.std()) / math.sqrt(count), count),
    )
