"""Makes the gradient of a loss's softmax exact while the loop differentiates it, without touching the loss itself."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreshock.numerics.repair import NARROW, zero_sum
from foreshock.probes.logits import SoftmaxNode, softmaxes
from foreshock.probes.nodes import plain, saved, signed

__all__ = ["ExactGradient"]

Gradients = tuple[Any, ...]
SLACK = 8.0
"""Ulps by which rounding may move the class sum of a hand-written logsumexp(z) - z_r, in units of 1 + |logsumexp|:
exp(z_k - logsumexp) is as far off as the logarithm's last digit."""


class ExactGradient:
    """Puts the gradient of the logits right in backward passes that are yet to come.

    What arrives at the logits through `log_softmax` or `softmax` sums to zero over the classes, whatever loss is made
    of them: g = u - p sum(u), or p (u - p.u). In floating point that of the class which holds almost all of the
    probability is lost (Liu, Cao, Li, Zhou 2026, arXiv 2605.06152, section 3). A hook on the node gives it minus the
    sum of the others, which are accurate down to underflow, as `numerics.exact_gradient` does in front of a loss:

        g_r := -sum_{k != r} g_k

    with r the right class where the graph has kept it (`nll_loss`, a `gather`), else the class of the largest share of
    the targets or of the probability. Class weights, smoothing, reductions, rows that are ignored, scales of a
    GradScaler, several losses, several backward passes and gradients of gradients need nothing of their own; a z-loss
    beside it keeps its gradient, as only what comes through this node is touched. Wrong classes stay as torch
    computed them: in float16 they may have underflowed, in bfloat16 they have its digits.

    A logsumexp written by hand, log sum exp(z) - z_r, meets its right class behind the node only; rows whose class sum
    there is more than rounding can have made are left alone.

    The loss keeps its value, which still reads 0 where stock losses do. Where the graph shows no softmax (compiled and
    fused losses) nothing is done. Nothing is raised into a backward pass: what fails leaves the gradient as it was, and
    is kept in `error`.

    Attributes:
        error: what failed last.
    """

    def __init__(self) -> None:
        self.error: Exception | None = None

    def arm(self, loss: Tensor) -> bool:
        """Makes the next backward passes of this loss exact; call it before them.

        Args:
            loss: with its graph.

        Returns:
            Whether there is a softmax in it whose gradient will be exact; this library's own losses have it anyhow.

        >>> z = torch.tensor([[40.0, 0.0, 0.0]], requires_grad=True)
        >>> loss = torch.nn.functional.cross_entropy(z, torch.tensor([0]))
        >>> ExactGradient().arm(loss)
        True
        >>> loss.backward()
        >>> z.grad.sum(1), z.grad[0, 0].item() < 0
        (tensor([0.]), True)
        """
        try:
            taken = [self._take(softmax) for softmax in softmaxes(loss)]
            return any(taken)
        except Exception as error:
            self.error = error
            return False

    def _take(self, softmax: SoftmaxNode) -> bool:
        """Hooks one softmax; returns whether its gradient will be exact."""
        if softmax.kind == "exact":
            return True
        index = _right(softmax)
        if softmax.kind != "logsumexp":
            _first(softmax.node.register_hook(partial(self._behind, softmax.dim, index)))
            return True
        value = saved(softmax.node, "result")
        if index is None or value is None or softmax.gate is None or not softmax.clean:
            return False
        outer: list[Tensor] = []
        softmax.node.register_prehook(lambda given: outer.append(given[0]))
        node, place = softmax.gate
        size = value.reshape(index.shape).abs().add_(1.0)
        _first(node.register_prehook(partial(self._before, place, softmax.dim, index, size, outer)))
        return True

    def _behind(self, dim: int, index: Tensor | None, onward: Gradients, given: Gradients) -> Gradients | None:
        """Returns what a softmax's node sends on, made exact; None leaves it as it is."""
        try:
            gradient = onward[0]
            if plain(gradient) is None:
                return None
            with torch.autocast(gradient.device.type, enabled=False):
                index = _largest(given[0].detach(), dim) if index is None else index
                return (_exact(gradient, index, dim),)
        except Exception as error:
            self.error = error
            return None

    def _before(
        self, place: int, dim: int, index: Tensor, size: Tensor, outer: list[Tensor], given: Gradients
    ) -> Gradients | None:
        """Returns the gradients that the node which made the logits is given, made exact in the rows that allow it."""
        try:
            gradient = given[place]
            if not outer or plain(gradient) is None:
                return None
            with torch.autocast(gradient.device.type, enabled=False):
                scale = outer.pop().detach().reshape(index.shape).abs() * size
                total = gradient.detach().sum(dim, keepdim=True, dtype=_wide(gradient))
                rounded = total.abs() <= SLACK * torch.finfo(gradient.dtype).eps * scale
                exact = torch.where(rounded, _apart(gradient, index, dim), gradient)
            return (*given[:place], exact, *given[place + 1 :])
        except Exception as error:
            self.error = error
            return None


def _right(softmax: SoftmaxNode) -> Tensor | None:
    """Returns the class of each row to be made from the others, shaped like the logits with one class; None where only
    the gradient will tell."""
    shape = (*softmax.shape[: softmax.dim], 1, *softmax.shape[softmax.dim + 1 :])
    index: Tensor
    if softmax.kind == "log":
        nll = softmax.nll
        values = None if nll is None else saved(nll, "target")
        if nll is None or values is None or values.numel() != softmax.count:
            return None
        index = values.where(values != signed(nll._saved_ignore_index), 0).long().reshape(shape)
        return index
    values = saved(softmax.chooser, "index") if softmax.chooser is not None else None
    if values is not None and tuple(values.shape) == shape:
        index = values.long()
        return index
    values = saved(softmax.node, "self" if softmax.kind == "logsumexp" else "result")
    if values is None:
        return None
    index = values.argmax(softmax.dim, keepdim=True)
    return index


def _largest(given: Tensor, dim: int) -> Tensor:
    """Returns the class of the largest target of each row, from the gradient of its log-probabilities, of any sign."""
    low, high = given.argmin(dim, keepdim=True), given.argmax(dim, keepdim=True)
    return torch.where(given.gather(dim, high) > -given.gather(dim, low), high, low)


def _exact(gradient: Tensor, index: Tensor, dim: int) -> Tensor:
    """Returns `_apart`, made in the gradient's own memory where nothing can want it as it was: logits may be many."""
    if torch.is_grad_enabled() or gradient.requires_grad or torch.compiler.is_compiling():
        return _apart(gradient, index, dim)
    own = gradient.gather(dim, index)
    gradient.scatter_(dim, index, 0.0)
    try:
        own = -gradient.sum(dim, keepdim=True, dtype=_wide(gradient)).to(gradient.dtype)
    finally:
        gradient.scatter_(dim, index, own)
    return gradient


def _apart(gradient: Tensor, index: Tensor, dim: int) -> Tensor:
    """Returns a gradient with the entries of `index` := -(sum of the others of the row), differentiable."""
    return zero_sum(gradient, index.squeeze(dim), ignore_index=-1, dim=dim)


def _wide(gradient: Tensor) -> torch.dtype | None:
    """Returns the type that sums of a gradient are taken in, None for its own."""
    return torch.float32 if gradient.dtype in NARROW else None


def _first(handle: Any) -> None:
    """Puts a hook before those that the node has already, which are then shown the gradient that goes on."""
    hooks: dict[int, Callable[..., Any]] = handle.hooks_dict_ref()
    others = {key: hook for key, hook in hooks.items() if key != handle.id}
    own = hooks[handle.id]
    hooks.clear()
    hooks.update({handle.id: own, **others})
