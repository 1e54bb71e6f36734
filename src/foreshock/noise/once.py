"""The noise scale of one batch, from the norms of its examples' gradients and their mean, with the jackknife's band."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock import distributed
from foreshock.batch_size import NoiseEstimate, ratio_band
from foreshock.batch_size.ratio import student
from foreshock.curvature.harmless import harmless
from foreshock.curvature.surroundings import modules_of, surroundings
from foreshock.errors import UsageError
from foreshock.noise.catch import Catch, Caught, codes, follows
from foreshock.noise.layers import uses_of
from foreshock.noise.precondition import inverse_squares
from foreshock.noise.uses import ROOM, Direct, Use, dots, squares

METHODS = ("auto", "ghost", "each")
CLOSE, CLOSE_HALF = 1e-4, 2e-2  # by how much the sum over examples may miss the gradient
CONFIDENCE = 0.95


def noise_scale(
    per_example_loss: Callable[[], Tensor],
    params: Sequence[Tensor],
    *,
    model: nn.Module | None = None,
    method: str = "auto",
    precondition: Optimizer | None = None,
) -> NoiseEstimate:
    """Returns the gradient noise scale at the parameters as they are, from the examples of one batch.

    With s_i = |g_i|^2 and S = |G_B|^2 of the mean of the n gradients: tr Sigma = (sum s_i - n S) / (n - 1) and
    |G|^2 = (n^2 S - sum s_i) / (n (n - 1)), both unbiased; the band is Fieller's, with the covariance of the two by the
    jackknife over examples. One batch tells little where the noise scale is far above n: then it is "undefined", and
    `low` is what is known.

    "ghost" takes the s_i of linear, convolutional, embedding and norm operations from their inputs and the gradients at
    their outputs, in one forward and two backward passes; whose slice is whose is proven by the second. "each" makes
    every example's gradient. "auto" takes the first, and the other for the parameters that it does not reach.
    Everything is left as it was.

    Args:
        per_example_loss: called without arguments, returns the losses, shape (n,), with their graph.
        params: what the losses are differentiated by.
        model: the module that is run; by default those that the closure's code names.
        method: as above.
        precondition: an Adam-like optimizer, by whose sqrt(vhat) + eps gradients are divided.

    Raises:
        UsageError: fewer than 4 losses, or not of shape (n,); sharded parameters; an optimizer without second moments.

    >>> w = torch.zeros(2, requires_grad=True)
    >>> x = torch.randn(64, 2, generator=torch.Generator().manual_seed(0)) + torch.tensor([2.0, 0.0])
    >>> found = noise_scale(lambda: x @ w, [w])  # gradients are x: tr Sigma = 2, |G|^2 = 4
    >>> found.status, found.low < 0.5 < found.high
    ('ok', True)

    Source: McCandlish et al. 2018, arXiv 1812.06162, appendix A.1; the jackknife of a ratio of U-statistics is Arvesen
    1969, Annals of Mathematical Statistics 40, 2076.
    """
    params = list(dict.fromkeys(params))
    _check(params, method)
    weights: dict[int, Tensor] = {}
    if precondition is not None:
        names = {id(param): str(id(param)) for param in params}
        found = inverse_squares(precondition, names)
        if found is None:
            raise UsageError(
                "noise_scale(precondition=...): the optimizer has no second moments, or took fewer than 5 steps"
            )
        weights = {int(name): value for name, value in found.items()}
    roots = [model] if model is not None else modules_of(per_example_loss)
    modules = list(dict.fromkeys(module for root in roots for module in root.modules()))
    with harmless(params, modules), surroundings(modules, params[0].device):
        sq, along, whole = _Batch(per_example_loss, params, weights).measure(method)
    estimate = jackknife(sq.double().cpu().numpy(), along.double().cpu().numpy(), whole)
    return replace(estimate, preconditioned=precondition is not None)


def jackknife(sq: np.ndarray[Any, Any], along: np.ndarray[Any, Any], whole: float) -> NoiseEstimate:
    """Returns the estimate from the gradients g_i of n examples, by their norms and products with their mean.

    Args:
        sq: (n,) |g_i|^2.
        along: (n,) <g_i, G_B>, G_B the mean of the g_i.
        whole: |G_B|^2.
    """
    n = len(sq)
    total = float(sq.sum())
    tr_sigma, g_sq = (total - n * whole) / (n - 1), (n * n * whole - total) / (n * (n - 1))
    m, sums = n - 1, total - sq  # of the batches without example i
    norms = n * n * whole - 2 * n * along + sq  # of the sums of their gradients
    each = np.stack([(sums - norms / m) / (m - 1), (norms - sums) / (m * (m - 1))])
    covariance = np.cov(each, bias=True) * (n - 1)
    xx, xy, yy = (float(covariance[place]) for place in ((0, 0), (0, 1), (1, 1)))
    found = ratio_band(tr_sigma, g_sq, (xx, xy, yy), student(CONFIDENCE, n - 1))
    fine = math.isfinite(found.high)
    return NoiseEstimate(
        max(0.0, found.value) if fine else math.nan, tr_sigma, g_sq, found.se, found.low, found.high, 1,
        "ok" if fine else "undefined", math.sqrt(xx), math.sqrt(yy), source=f"{n} examples of one batch",
        reasons=() if fine else ("|G|^2 is not distinguishable from 0: the noise scale has no upper bound",),
        confidence=CONFIDENCE,
    )  # fmt: skip


class _Batch:
    """One batch's losses, and what their gradients have."""

    def __init__(
        self, closure: Callable[[], Tensor], params: Sequence[Tensor], weights: dict[int, Tensor]
    ) -> None:
        self._closure, self._weights = closure, weights
        self._params = {id(param): param for param in params}

    def measure(self, method: str) -> tuple[Tensor, Tensor, float]:
        """Returns |g_i|^2 (n,), <g_i, G_B> (n,) and |G_B|^2, in the weights' metric."""
        catch = Catch(self._params)
        if method == "each":
            losses = _checked(self._closure())
        else:
            with catch:
                losses = _checked(self._closure())
        n = len(losses)
        params = list(self._params.values())
        grads = torch.autograd.grad(losses.sum(), params, retain_graph=True, allow_unused=True)
        mean = {
            key: grad.to_dense().detach().to(_wide(grad)) / n if grad.is_sparse else grad.detach().to(_wide(grad)) / n
            for key, grad in zip(self._params, grads, strict=True) if grad is not None
        }  # fmt: skip
        uses: dict[int, list[Use]] = {}
        if catch.caught:
            factors = torch.tensor(codes(n), dtype=losses.dtype, device=losses.device)
            torch.autograd.grad((losses * factors).sum(), params, retain_graph=True, allow_unused=True)
            uses = self._uses(catch.caught, factors)
        moved = {key: value * self._weights[key] if key in self._weights else value for key, value in mean.items()}
        kind = torch.float64 if losses.device.type != "mps" else torch.float32
        sq, along = (torch.zeros(n, dtype=kind, device=losses.device) for _ in range(2))
        rest = [key for key in mean if not self._whole(uses.get(key, []), mean[key] * n)]
        if method == "ghost" and rest:
            raise UsageError(
                f"noise_scale(method='ghost'): {len(rest)} of the parameters are used by operations that it does not "
                "follow, or not split by examples; method='auto' takes their gradients one by one"
            )
        for key in mean:
            if key not in rest:
                sq += squares(uses[key], self._weights.get(key)).to(sq)
                along += dots(uses[key], moved[key]).to(sq)
        if rest:
            self._each(losses, rest, moved, sq, along)
        whole = sum(float((mean[key].double() * moved[key].double()).sum()) for key in mean)
        return sq, along, whole

    def _uses(self, caught: Sequence[Caught], factors: Tensor) -> dict[int, list[Use]]:
        """Returns the uses of each parameter all of whose operations are split by examples."""
        found: dict[int, list[Use]] = {}
        lost: set[int] = set()
        for each in caught:
            if not each.grads:
                continue
            layout = follows(each.grads[0], each.grads[1], factors) if len(each.grads) == 2 else None
            if layout is None or each.call.a._version != each.call.version:
                lost |= set(each.params.values())
                continue
            with torch.no_grad():
                for name, use in uses_of(each.call, each.grads[0], len(factors), layout):
                    found.setdefault(each.params[name], []).append(use)
        return {key: uses for key, uses in found.items() if key not in lost}

    def _whole(self, uses: Sequence[Use], gradient: Tensor) -> bool:
        """Returns whether the uses of a parameter add up to its gradient."""
        if not uses:
            return False
        with torch.no_grad():
            totals = [use.total().to(gradient) for use in uses]
            halves = any((use.grads if isinstance(use, Direct) else use.e).element_size() < 4 for use in uses)
            norm = torch.linalg.vector_norm(gradient)
            scale = torch.stack([torch.linalg.vector_norm(total) for total in totals]).max()
            off = torch.linalg.vector_norm(torch.stack(totals).sum(0) - gradient)
            return bool(off <= (CLOSE_HALF if halves else CLOSE) * torch.maximum(norm, scale))

    def _each(
        self, losses: Tensor, keys: Sequence[int], moved: dict[int, Tensor], sq: Tensor, along: Tensor
    ) -> None:
        """Adds what every example's own gradient has, of some parameters."""
        params = [self._params[key] for key in keys]
        step = max(1, min(len(losses), ROOM // max(1, sum(param.numel() for param in params))))
        for begin in range(0, len(losses), step):
            ones = torch.eye(len(losses), dtype=losses.dtype, device=losses.device)[begin : begin + step]
            for grads in _batched(losses, params, ones):
                first, rows = grads
                for key, grad in zip(keys, rows, strict=True):
                    if grad is not None:
                        wide, place = grad.to(_wide(grad)), slice(begin + first, begin + first + len(grad))
                        weight = self._weights.get(key)
                        squared = wide * wide if weight is None else wide * wide * weight
                        sq[place] += squared.flatten(1).sum(1).to(sq)
                        along[place] += (wide * moved[key]).flatten(1).sum(1).to(sq)


def _batched(
    losses: Tensor, params: Sequence[Tensor], ones: Tensor
) -> list[tuple[int, Sequence[Tensor | None]]]:
    """Returns the gradients of some losses, at once where that can be done, each lot with the number of its first."""
    settings: dict[str, Any] = {"retain_graph": True, "allow_unused": True}
    try:
        return [(0, torch.autograd.grad(losses, params, ones, is_grads_batched=True, **settings))]
    except RuntimeError:  # an operation that cannot be batched
        rows = [torch.autograd.grad(losses, params, one, **settings) for one in ones]
        return [(i, [None if g is None else g.to_dense()[None] for g in row]) for i, row in enumerate(rows)]


def _checked(losses: Tensor) -> Tensor:
    if not isinstance(losses, Tensor) or losses.dim() != 1 or len(losses) < 4:
        what = f"shape {tuple(losses.shape)}" if isinstance(losses, Tensor) else type(losses).__name__
        raise UsageError(f"noise_scale(per_example_loss): must return 4 losses or more, shape (n,), got {what}")
    if losses.grad_fn is None:
        raise UsageError("noise_scale(per_example_loss): the losses have no graph; call the model in the closure")
    return losses


def _check(params: Sequence[Tensor], method: str) -> None:
    if method not in METHODS:
        raise UsageError(f"noise_scale(method=...): must be one of {', '.join(METHODS)}, got {method!r}")
    if not params:
        raise UsageError("noise_scale(params): there are none")
    if any(distributed.sharded(param) for param in params):
        raise UsageError("noise_scale(params): some are sharded; measure with probes.NoiseScale(layers='norm') instead")


def _wide(tensor: Tensor) -> torch.dtype:
    return torch.promote_types(tensor.dtype, torch.float32)
