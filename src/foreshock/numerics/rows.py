"""The arithmetic of exact cross-entropy on rows of logits: losses, gradients, products with the Hessian. Written once.

The probability of the right class is never subtracted from 1. In a confident row that difference is rounded to 0 while
the wrong classes keep their gradients, so that a row's gradient no longer sums to zero (Liu, Cao, Li and Zhou 2026,
arXiv 2605.06152, section 3); here the right class's gradient is minus the sum of the others.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import Parameter

from foreshock.numerics.dispatch import kernels
from foreshock.numerics.layout import working_dtype

__all__ = [
    "bend", "fit", "gradients_by_probabilities_", "gradients_of_rows", "losses_by_probabilities", "losses_of_rows",
    "parts", "probabilities", "relative", "surprises",
]  # fmt: skip

CHUNK = 1 << 18
"""Logits handled at a time by each thread of a CPU: with their exponentials they stay in the second-level cache, and
4096 x 32000 take 0.6 of the time of `torch.nn.functional.cross_entropy`."""
CHUNK_ELSEWHERE = 1 << 24
NARROWER = 4  # times fewer float16 and bfloat16 logits, whose copies in float32 would outweigh them
KEPT = 1 << 24
"""Float32 logits of a CPU, 64 MB, up to which probabilities are kept for the backward pass: one exponential an element
instead of two, 0.7 to 0.9 of the time. Torch keeps as much; above, nothing but the logits is."""
SMALLEST = 1e-30  # probability of the right class from which the ratio of the others to it is safe in float32


def losses_of_rows(
    logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns of each row the loss, the largest logit m, and the sum of exp(z_k - m) over the wrong classes.

    The arguments are those of `exact.losses`.
    """
    if kernel := kernels(logits, spread, dim):
        losses: tuple[Tensor, Tensor, Tensor] = kernel.row_losses(logits, right, spread, mass)
        return losses
    kind = working_dtype(logits.dtype)
    if torch.compiler.is_compiling():
        return _traced_losses(logits.to(kind), right, spread, mass, dim)
    found = torch.empty(right.shape, dtype=kind, device=logits.device)
    top, wrong = torch.empty_like(found), torch.empty_like(found)
    space = None
    for part in parts(logits):
        piece, at, m, below = _cut(logits, part), _cut(right, part), _cut(top, part), _cut(found, part)
        space = torch.empty_like(piece, dtype=kind) if space is None else space[: len(piece)]
        wide = piece if logits.dtype == kind else space.copy_(piece)
        torch.amax(wide, dim, keepdim=True, out=m)
        torch.sub(wide, m, out=space)
        own = space.gather(dim, at)
        targets = None if spread is None else _of(spread, part)
        if targets is None:
            torch.neg(own, out=below)
        else:
            torch.sum(space * targets, dim, keepdim=True, out=below).neg_()
            if mass is not None:
                below.sub_(own * _cut(mass, part))
        others = torch.sum(space.exp_().scatter_(dim, at, 0.0), dim, keepdim=True, out=_cut(wrong, part))
        # log(sum e), exact where the right class is the largest: own.expm1() is then 0
        log = own.expm1_().add_(others).log1p_()
        below.add_(log if targets is None else log.mul_(_total(targets, mass, part, dim)))
    return found, top, wrong


def gradients_of_rows(
    logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, outer: Tensor, top: Tensor,
    wrong: Tensor, dim: int,
) -> Tensor:  # fmt: skip
    """Returns the gradient of sum(outer * losses) by the logits, in their type; `top` and `wrong` as found before."""
    if kernel := kernels(logits, spread, dim):
        gradient: Tensor = kernel.row_gradient(logits, right, spread, mass, outer, top, wrong)
        return gradient
    kind = working_dtype(logits.dtype)
    if torch.compiler.is_compiling():
        e = (logits.to(kind) - top).exp()
        return _traced_gradient(e, right, spread, mass, outer, wrong, dim).to(logits.dtype)
    found = torch.empty_like(logits)
    space = None
    for part in parts(logits):
        piece, at, scale, others = _cut(logits, part), _cut(right, part), _cut(outer, part), _cut(wrong, part)
        if logits.dtype == kind:
            space = _cut(found, part)
        else:
            space = torch.empty_like(piece, dtype=kind) if space is None else space[: len(piece)]
            piece = space.copy_(piece)
        torch.sub(piece, _cut(top, part), out=space)
        share = scale / space.gather(dim, at).exp_().add_(others)
        space.exp_()
        if spread is None:
            space.mul_(share).scatter_(dim, at, share.mul_(others).neg_())
        else:
            targets = _of(spread, part)
            space.mul_(share * _total(targets, mass, part, dim)).sub_(scale * targets)
            space.scatter_(dim, at, 0.0)
            space.scatter_(dim, at, -space.sum(dim, keepdim=True))
        if logits.dtype != kind:
            _cut(found, part).copy_(space)
    return found


def _traced_losses(
    wide: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """The same for compilers, which fuse it: nothing is written in place, which some of their versions lose."""
    top = wide.amax(dim, keepdim=True)
    below = wide - top
    own = below.gather(dim, right)
    wrong = below.exp().scatter(dim, right, 0.0).sum(dim, keepdim=True)
    log = (own.expm1() + wrong).log1p()
    if spread is None:
        return log - own, top, wrong
    lost = -(below * spread).sum(dim, keepdim=True) - (0.0 if mass is None else own * mass)
    return lost + log * _total(spread, mass, None, dim), top, wrong


def _traced_gradient(
    e: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, outer: Tensor, wrong: Tensor, dim: int
) -> Tensor:
    share = outer / (e.gather(dim, right) + wrong)
    if spread is None:
        return (e * share).scatter(dim, right, -(share * wrong))
    others = (e * (share * _total(spread, mass, None, dim)) - outer * spread).scatter(dim, right, 0.0)
    return others.scatter(dim, right, -others.sum(dim, keepdim=True))


def losses_by_probabilities(logits: Tensor, right: Tensor, dim: int) -> tuple[Tensor, Tensor, Tensor] | None:
    """Returns the loss log1p(w / p_r) of each row, its wrong mass w, and its probabilities with that of r set to 0.

    None where it does not serve: for many or narrow logits, on accelerators, and where a right class has next to no
    probability, so that w / p_r overflows.
    """
    few = 0 < logits.numel() <= KEPT and logits.dtype == working_dtype(logits.dtype) and logits.device.type == "cpu"
    if not few or type(logits) not in (Tensor, Parameter) or torch.compiler.is_compiling():
        return None
    if kernels(logits, None, dim):
        return None
    shares = torch.softmax(logits, dim)
    own = shares.gather(dim, right)
    if not own.min() > SMALLEST:
        return None
    wrong = shares.scatter_(dim, right, 0.0).sum(dim, keepdim=True)
    return torch.log1p(wrong / own), wrong, shares


def gradients_by_probabilities_(shares: Tensor, right: Tensor, wrong: Tensor, outer: Tensor, dim: int) -> Tensor:
    """Returns the gradient of sum(outer * losses) by the logits, made in the place of the probabilities."""
    return shares.mul_(outer).scatter_(dim, right, -(wrong * outer))


def parts(logits: Tensor) -> Iterator[slice | None]:
    """Yields slices of the first dimension of about a chunk each; None for all of it, as one chunk."""
    if torch.compiler.is_compiling():
        yield None
        return
    n = len(logits)
    chunk = CHUNK * torch.get_num_threads() if logits.device.type == "cpu" else CHUNK_ELSEWHERE
    if logits.element_size() < 4:
        chunk //= NARROWER
    if logits.numel() <= chunk:
        yield None
        return
    rows = max(1, chunk * n // logits.numel())
    for begin in range(0, n, rows):
        yield slice(begin, min(n, begin + rows))


def _cut(values: Tensor, part: slice | None) -> Tensor:
    return values if part is None else values[part]


def _of(spread: Tensor, part: slice | None) -> Tensor:
    """Returns the targets of a part of the rows; one row of targets may serve all."""
    return spread if part is None or len(spread) == 1 else spread[part]


def _total(targets: Tensor, mass: Tensor | None, part: slice | None, dim: int) -> Tensor:
    """Returns the sum of the targets of each row."""
    total = targets.sum(dim, keepdim=True)
    return total if mass is None else total + _cut(mass, part)


def probabilities(logits: Tensor, dim: int) -> Tensor:
    return torch.softmax(logits.to(working_dtype(logits.dtype)), dim)


def surprises(logits: Tensor, dim: int) -> Tensor:
    """Returns -log p of every class, the gradient of a loss by its targets."""
    return -torch.log_softmax(logits.to(working_dtype(logits.dtype)), dim)


def relative(values: Tensor, right: Tensor, dim: int) -> Tensor:
    """Returns values less that of the right class, whose probability of almost 1 then meets an exact 0."""
    return values - values.gather(dim, right)


def bend(
    logits: Tensor, right: Tensor, spread: Tensor | None, mass: Tensor | None, values: Tensor, dim: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the product of each row's Hessian with values, their mean under p, and their product with the gradient.

    With u_k = v_k - v_r: (Hv)_k = Y p_k (u_k - sum_j p_j u_j), and g'v = Y sum_j p_j u_j - sum_k y_k u_k; the mean is
    relative to v_r as well.
    """
    moved = relative(values.to(working_dtype(logits.dtype)), right, dim)
    p = probabilities(logits, dim)
    mean = (p * moved).sum(dim, keepdim=True)
    if spread is None:
        return p * (moved - mean), mean, mean
    total = _total(spread, mass, None, dim)
    return total * p * (moved - mean), mean, total * mean - (spread * moved).sum(dim, keepdim=True)


def fit(gradient: Tensor, spread: Tensor) -> Tensor:
    """Returns a gradient summed over the dimensions in which the targets were broadcast."""
    return gradient.sum_to_size(spread.shape).to(spread.dtype)
