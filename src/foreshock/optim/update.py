"""S3's update in torch operations, over lists of tensors: the one implementation that every device and type can run."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

__all__ = ["update"]


def update(
    params: Sequence[Tensor],
    grads: Sequence[Tensor],
    exp_avgs: Sequence[Tensor],
    roots: Sequence[Tensor],
    *,
    lr: float | Tensor,
    beta: float,
    beta2: float,
    p: float,
    eps: float,
    weight_decay: float,
    nesterov: bool,
    maximize: bool,
) -> None:
    """Makes one step of S3 in place: parameters, averages of gradients and roots of averages of |g|^p."""
    for param, grad, m, r in zip(params, grads, exp_avgs, roots, strict=True):
        work = torch.promote_types(param.dtype, torch.float32)
        tiny = torch.finfo(work).tiny
        g = grad.to(work)
        if maximize:
            g = -g
        average = torch.lerp(m.to(work), g, 1 - beta)
        size, old = g.abs(), r.to(work)
        top = torch.maximum(size, old) + tiny
        new, old = (size / top) ** p, (old / top) ** p
        s = torch.lerp(old, new, 1 - beta2) if beta2 else new
        root = top * s ** (1 / p) if beta2 else size
        m.copy_(average)
        r.copy_(root)
        if nesterov:
            average = torch.lerp(average, g, 1 - beta)
            root = top * torch.lerp(s, new, 1 - beta2) ** (1 / p) if beta2 else size
        moved = param.to(work)
        if weight_decay:
            moved = moved * (1 - lr * weight_decay)
        param.copy_(moved - lr * (average / (root + max(eps, tiny))))
