"""Methods whose step is bounded whatever the gradient (Lion, S3, Muon): formal readings, with P as frozen as it gets.

On a quadratic they never diverge: the amplitude settles at the order of lr. Their readings say so, and point to the
sharpness in their own norm (Islamov et al. 2026, arXiv 2603.05002).
"""

from __future__ import annotations

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.stability import filters
from foreshock.stability.blocks import KroneckerBlock, eigen
from foreshock.stability.group import Group
from foreshock.stability.registry import Reading

__all__ = ["lion", "mixed_root", "muon", "s3"]

_STALE = "the last step's {} is not stored: read with grads for the step about to be taken"


def lion(group: Group) -> list[Reading]:
    """Lion (Chen et al. 2023, arXiv 2302.06675): P = abs(b1 m + (1 - b1) g), q = (1 + b2 - 2 b1)/(1 + b2)."""
    settings = group.settings
    beta1, beta2 = settings["betas"]
    m = group.stored("exp_avg")
    if group.planned and m:
        m = list(torch._foreach_lerp(m, group.gradients(), 1 - beta1))
    return [
        Reading(
            denominator=each.abs(),
            lr=settings["lr"],
            gain=filters.lion(beta1, beta2).gain(),
            decay=settings["lr"] * settings.get("weight_decay", 0.0),
            formal=True,
            notes=() if group.planned else (_STALE.format("interpolation of momentum and gradient"),),
        )
        for each in m
    ]


def s3(group: Group) -> list[Reading]:
    """S3 (arXiv 2507.06464): P = (beta s + (1 - beta) abs(g)^p)^(1/p) + eps, q = (1 - beta)(1 + 2 beta)/(1 + beta).

    Without its Nesterov mix P = s^(1/p) + eps, q = (1 - beta)/(1 + beta). beta2, where it is given, takes the place of
    beta in P. The p-th moment s is looked for as `exp_avg_p`, or in root space, s^(1/p), as `exp_avg_root`.
    """
    settings = group.settings
    beta, p, eps = settings["beta"], settings["p"], settings["eps"]
    nesterov = settings.get("nesterov", True)
    keep = beta if settings.get("beta2") is None else settings["beta2"]
    keep = keep * keep if nesterov else keep  # of s, next to the gradient of the step
    filter_ = filters.mix(1 - beta, beta, beta) if nesterov else filters.ema(beta)
    grads, result = group.gradients(), []
    for place, (param, state) in enumerate(zip(group.params, group.states, strict=True)):
        kept = next((name for name in ("exp_avg_root", "exp_avg_p") if isinstance(state.get(name), Tensor)), None)
        if kept is None and state:
            raise UsageError("this S3 keeps its p-th moment under an unknown name; register a rule for its class")
        r = torch.zeros_like(param.detach(), dtype=torch.promote_types(param.dtype, torch.float32))
        if kept is not None:
            r = (
                state[kept].detach().to(r.dtype)
                if kept == "exp_avg_root"
                else state[kept].detach().to(r.dtype) ** (1 / p)
            )
        if group.planned:
            r = mixed_root(r, grads[place].abs(), keep, p)
        result.append(
            Reading(
                denominator=r + eps,
                lr=settings["lr"],
                gain=filter_.gain(),
                decay=settings["lr"] * settings.get("weight_decay", 0.0),
                floor=eps,
                formal=True,
                approximate=True,
                notes=() if group.planned or not nesterov else (_STALE.format("mix of moment and gradient"),),
            )
        )
    return result


def mixed_root(root: Tensor, size: Tensor, keep: float, p: float) -> Tensor:
    """Returns (keep root^p + (1 - keep) size^p)^(1/p) of tensors that are not negative.

    Scaled by the larger one, because cubes of small gradients underflow.
    """
    top = torch.maximum(root, size)
    unit = top.clamp(min=torch.finfo(top.dtype).tiny)
    return top * (keep * (root / unit) ** p + (1 - keep) * (size / unit) ** p) ** (1 / p)


def muon(group: Group) -> list[Reading]:
    """Muon: P = (M M')^1/2 on the shorter side, M the update before its orthogonalisation; step size as adjusted.

    q = (1 - mu)/(1 + mu), or (1 - mu)(1 + 2 mu)/(1 + mu) with Nesterov. torch orthogonalises in bfloat16 up to
    singular values between about .5 and 1.5, which is taken as exact here. Without gradients M is the stored momentum.
    """
    group.refuse_shards()
    settings = group.settings
    mu, nesterov = settings["momentum"], settings["nesterov"]
    buffers = group.stored("momentum_buffer")
    if group.planned and buffers:
        grads = group.gradients()
        buffers = list(torch._foreach_lerp(buffers, grads, 1 - mu))
        if nesterov:
            buffers = list(torch._foreach_lerp(grads, buffers, mu))
    gain = (filters.mix(1 - mu, mu, mu) if nesterov else filters.ema(mu)).gain()
    result = []
    for param, update in zip(group.params, buffers, strict=True):
        rows, columns = param.shape
        gram = update @ update.mT if rows <= columns else update.mT @ update
        side = eigen(gram, 0.5) if param.numel() else (gram, gram.new_zeros(0))
        way = settings.get("adjust_lr_fn")
        ratio = max(1.0, rows / max(1, columns)) ** 0.5 if way in (None, "original") else 1.0
        ratio = 0.2 * max(rows, columns) ** 0.5 if way == "match_rms_adamw" else ratio
        result.append(
            Reading(
                denominator=KroneckerBlock(param.shape, (side, None) if rows <= columns else (None, side)),
                lr=settings["lr"] * ratio,
                gain=gain,
                decay=settings["lr"] * settings["weight_decay"],
                formal=True,
                notes=() if group.planned or not nesterov else (_STALE.format("Nesterov mix"),),
            )
        )
    return result
