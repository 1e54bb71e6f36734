"""Denominators in Kronecker form (Shampoo) or diagonal in a Kronecker eigenbasis (SOAP)."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from foreshock.errors import UsageError
from foreshock.stability import filters
from foreshock.stability.blocks import KroneckerBlock, RotatedBlock, eigen
from foreshock.stability.group import Group, lifted
from foreshock.stability.parts import Fading, Parts, uncorrected
from foreshock.stability.parts import corrected as unbiased
from foreshock.stability.registry import Reading
from foreshock.stability.rules.moments import FAST

__all__ = ["shampoo", "soap"]


def shampoo(group: Group) -> list[Reading]:
    """Shampoo (Gupta et al. 2018, arXiv 1802.09568): P = L^1/4 (x) R^1/4, for k dimensions each to the 1/(2k).

    The statistics are looked for as `preconditioners` (a list, None where a dimension is left alone; the power is
    1/(2k) and momentum a heavy ball on preconditioned gradients), or as `precond_i` with `inv_precond_i` as in
    pytorch_optimizer (the power is 1/k; the stored inverse is what is applied, whatever its age).
    """
    group.refuse_shards()
    settings = group.settings
    momentum = settings.get("momentum", 0.0)
    grads, result = group.gradients(settings.get("weight_decay", 0.0)), []
    for place, (param, state, step) in enumerate(zip(group.params, group.states, group.steps, strict=True)):
        grad = grads[place] if group.planned else None
        if isinstance(state.get("preconditioners"), (list, tuple)):
            statistics = [
                None if each is None else each.detach() + (0 if grad is None else _gram(grad, dim))
                for dim, each in enumerate(state["preconditioners"])
            ]
            power = 1 / (2 * max(1, param.dim()))
            factors = tuple(None if each is None else eigen(lifted(each, param), power) for each in statistics)
            gain = filters.heavy_ball(momentum).gain()
        elif "inv_precond_0" in state and not momentum:
            refreshed = group.planned and (step - 1) % settings.get("update_freq", 1) == 0
            factors = _classic(state, grad if refreshed else None, param)
            gain = 1.0
        else:
            raise UsageError(
                "this Shampoo keeps its statistics under unknown names, or none yet, or filters its gradients in a way "
                "that is no linear filter; register a rule for its class"
            )
        result.append(
            Reading(
                denominator=KroneckerBlock(param.shape, factors),
                lr=settings["lr"],
                gain=gain,
                l2=settings.get("weight_decay", 0.0),
            )
        )
    return result


def soap(group: Group) -> list[Reading]:
    """SOAP (Vyas et al. 2024, arXiv 2409.11321): P = Q diag(Adam's P) Q' in the stored eigenbasis Q of Shampoo."""
    group.refuse_shards()
    settings = group.settings
    if settings.get("normalize_grads") or settings.get("normalize_gradient"):
        raise UsageError("SOAP with normalized updates steps by no fixed size; register a rule for its class")
    (beta1, beta2), eps = settings["betas"], settings["eps"]
    result, grads = [], group.gradients()
    for place, (param, state, step) in enumerate(zip(group.params, group.states, group.steps, strict=True)):
        if "Q" not in state:
            raise UsageError("SOAP builds its eigenbasis in the first call of step() and moves nothing: read it after")
        step = step if "step" in state else step - 1  # counted for the group, that call included
        bases = tuple(lifted(each, param) if isinstance(each, Tensor) and each.numel() else None for each in state["Q"])
        sizes = [None if basis is None else len(basis) for basis in bases]
        view = param.shape if len(sizes) == param.dim() else _merged(param, sizes)
        v = lifted(state["exp_avg_sq"], param).reshape(view)
        if group.planned:
            turned = RotatedBlock(view, tuple(None if each is None else each.mT for each in bases), torch.ones_like(v))
            v = beta2 * v + (1 - beta2) * _projected(grads[place].reshape(view), turned).square()
        corrected = settings.get("correct_bias", True)
        first = 1 - beta1**step if corrected else 1.0
        scale = first / (1 - beta2**step) ** 0.5 if corrected else 1.0
        front = partial(_front, beta1, beta2) if corrected else uncorrected
        shrink = settings["lr"] * settings.get("weight_decay", 0.0)
        result.append(
            Reading(
                denominator=RotatedBlock(param.shape, bases, scale * (v.sqrt() + eps)),
                lr=settings["lr"] * (1 - shrink),  # it decays after the move, and the move with it
                gain=filters.ema(beta1).gain(),
                decay=shrink,
                floor=scale * eps,
                approximate=1 - beta2 > FAST,
                correction=first,
                parts=Parts(scale, eps, Fading(beta2, step, front, uncorrected)),
            )
        )
    return result


def _front(beta1: float, beta2: float, step: float) -> float:
    return unbiased(beta1, step) * unbiased(beta2, step, power=-0.5)


def _gram(grad: Tensor, dim: int) -> Tensor:
    flat = grad.movedim(dim, 0).reshape(grad.shape[dim], -1)
    return flat @ flat.mT


def _classic(state: Mapping[str, Any], grad: Tensor | None, param: Tensor) -> tuple[tuple[Tensor, Tensor], ...]:
    """Returns the factors of pytorch_optimizer's Shampoo; with a gradient, as refreshed by it.

    Each dimension's statistic sees the gradient already divided along the dimensions before it.
    """
    factors = []
    for dim in range(param.dim()):
        if grad is None:
            factors.append(eigen(lifted(state[f"inv_precond_{dim}"], param), -1.0))
            continue
        statistic = lifted(state[f"precond_{dim}"], param) + _gram(grad, dim)
        vectors, values = eigen(statistic, 1 / param.dim())
        factors.append((vectors, values))
        grad = torch.movedim(torch.tensordot((vectors / values) @ vectors.mT, grad, dims=([1], [dim])), 0, dim)
    return tuple(factors)


def _merged(param: Tensor, sizes: list[int | None]) -> torch.Size:
    """Returns the shape a parameter was reshaped to, from the sizes of its bases: at most one may be unknown."""
    known = 1
    for size in sizes:
        known *= size or 1
    if sizes.count(None) > 1 or param.numel() % max(1, known):
        raise UsageError("the dimensions this SOAP merged cannot be told from its bases; register a rule for its class")
    return torch.Size(param.numel() // known if size is None else size for size in sizes)


def _projected(grad: Tensor, turned: RotatedBlock) -> Tensor:
    y = grad
    for place, basis in enumerate(turned.bases):
        if basis is not None:
            y = torch.movedim(torch.tensordot(basis, y, dims=([1], [place])), 0, place)
    return y
