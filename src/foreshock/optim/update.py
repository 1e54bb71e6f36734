"""S3's update in torch operations over whole lists of tensors: what every device, type and compiler can run.

For one coordinate, with w = 1 - beta2 and r = s^(1/p) what is kept of the p-th moment s:

    m' = beta m + (1 - beta) g          n = beta m' + (1 - beta) g        (n = m' without the Nesterov mix)
    s' = beta2 s + w |g|^p              b^p = beta2 s' + w |g|^p          (b^p = s' without it)
    theta' = (1 - lr weight_decay) theta - lr n/(b + eps)

No power of a gradient is ever formed: with a scale d = max(r, c |g|), both roots are d (k + (1 - k) y)^(1/p), where
y = (|g|/d)^p, k = beta2 for s' and beta2^2 for b^p. c is so small that what it adds to r rounds away, and so large that
y does not overflow (`scale`). Where there is no history, d = 0 and so is the update.
"""

from __future__ import annotations

from itertools import pairwise
from typing import Unpack

import torch
from torch import Tensor

from foreshock.optim import blocks
from foreshock.optim.blocks import Tensors
from foreshock.optim.settings import Settings

__all__ = ["update"]

PART = 1 << 26
"""Elements worked on at once: what is computed on the way takes some five lists of them, 1.3 GB of float32."""


def update(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, roots: Tensors, **settings: Unpack[Settings]
) -> None:
    """Makes one step of S3 in place: parameters, averages of gradients, roots of averages of |g|^p.

    Works in float32 for narrower types, otherwise in that of the parameter.

    Args:
        params, grads, exp_avgs, roots: lists of real tensors of the same shapes on one device, of any layout;
            parameters of one type.
        settings: of their group; an lr that is a tensor is not read on the host.
    """
    for first, stop in _parts([param.numel() for param in params]):
        _part(params[first:stop], grads[first:stop], exp_avgs[first:stop], roots[first:stop], settings)


def _parts(sizes: list[int]) -> list[tuple[int, int]]:
    """Returns [first, stop) ranges of tensors of at most `PART` elements in all, or of one tensor."""
    if torch.compiler.is_compiling():
        return [(0, len(sizes))] if sizes else []
    edges, held = [0], 0
    for place, size in enumerate(sizes):
        if held and held + size > PART:
            edges.append(place)
            held = 0
        held += size
    return list(pairwise([*edges, len(sizes)])) if sizes else []


def _part(params: Tensors, grads: Tensors, exp_avgs: Tensors, roots: Tensors, settings: Settings) -> None:
    """Makes the step of tensors that there is memory for to work on at once."""
    lr, beta, beta2, p = settings["lr"], settings["beta"], settings["beta2"], settings["p"]
    nesterov, weight_decay = settings["nesterov"], settings["weight_decay"]
    work = torch.promote_types(params[0].dtype, torch.float32)
    gs, ms, rs = (_in(work, each) for each in (grads, exp_avgs, roots))
    if settings["maximize"]:
        gs = torch._foreach_neg(gs)
    ms = torch._foreach_lerp(ms, gs, 1 - beta)
    numerator = torch._foreach_lerp(ms, gs, 1 - beta) if nesterov else ms
    size = torch._foreach_abs(gs)
    if beta2:
        large, tiny = blocks.scale(p, beta2, work), torch.finfo(work).tiny
        top = torch._foreach_mul(size, large)
        torch._foreach_maximum_(top, rs)
        size = torch._foreach_div(size, torch._foreach_add(top, tiny))
        factors, rest = blocks.power_plan(p)
        for factor in factors:
            torch._foreach_pow_(size, factor)
        if rest != 1:
            _power(size, rest)
        rs = _root(size, top, beta2, p)
        below = _root(size, top, beta2 * beta2, p) if nesterov else rs
    else:
        rs = below = size
    torch._foreach_copy_(exp_avgs, ms)
    torch._foreach_copy_(roots, rs)
    below = torch._foreach_add(below, blocks.least(settings["eps"], work))
    moved = _in(work, params)
    if isinstance(lr, Tensor):
        rate = lr.to(device=moved[0].device, dtype=work)
        if weight_decay:
            moved = torch._foreach_mul(moved, 1 - rate * weight_decay)
        ratio = torch._foreach_div(numerator, below)
        torch._foreach_mul_(ratio, rate)
        moved = torch._foreach_sub(moved, ratio)
    else:
        if weight_decay:
            moved = torch._foreach_mul(moved, 1 - lr * weight_decay)
        moved = torch._foreach_addcdiv(moved, numerator, below, value=-lr)
    torch._foreach_copy_(params, moved)


def _root(powers: Tensors, top: Tensors, keep: float, p: float) -> Tensors:
    """Returns top (keep + (1 - keep) powers)^(1/p)."""
    mixed = torch._foreach_mul(powers, 1 - keep)
    torch._foreach_add_(mixed, keep)
    squares, order = blocks.root_plan(p)
    for _ in range(squares):
        torch._foreach_sqrt_(mixed)
    if order != 1:
        _power(mixed, 1 / order)
    torch._foreach_mul_(mixed, top)
    return mixed


def _power(tensors: Tensors, exponent: float) -> None:
    torch._foreach_log_(tensors)
    torch._foreach_mul_(tensors, exponent)
    torch._foreach_exp_(tensors)


def _in(dtype: torch.dtype, tensors: Tensors) -> Tensors:
    return [tensor.to(dtype) for tensor in tensors]
