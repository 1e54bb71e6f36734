"""Denominators of the optimizers that divide by a root of a moment, in the exact conventions of torch.optim.

Each rule returns one `Reading` per parameter of a group. With gradients, moments are those that the step is about to
make of them; nothing is written, and one tensor of a parameter's size is made for each.

Sources: Cohen et al. 2022, arXiv 2207.14484 (bias correction folded into P); the code of torch.optim.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import lru_cache, partial

import torch
from torch import Tensor

from foreshock.stability import filters
from foreshock.stability.group import Group
from foreshock.stability.parts import Fading, Parts, corrected, fading, uncorrected
from foreshock.stability.registry import Reading

__all__ = [
    "FAST",
    "adadelta",
    "adagrad",
    "adam",
    "adamax",
    "blended",
    "decays",
    "nadam",
    "radam",
    "readings",
    "rmsprop",
    "root",
    "sparse_adam",
]

FAST = 0.05 + 1e-9  # a second moment that forgets faster is not frozen on the scale of the oscillation (measured: the
# edge of RMSprop sits at 1.07/1.34/2.27 for 1 - alpha = .01/.1/.5)


def adam(group: Group) -> list[Reading]:
    """Adam, AMSGrad, AdamW: P = (1 - b1^t)(sqrt(v/(1 - b2^t)) + eps), q = (1 - b1)/(1 + b1)."""
    beta1, beta2 = group.settings["betas"]
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    v = blended(group, "exp_avg_sq", beta2, 1 - beta2, l2)
    if group.settings.get("amsgrad"):
        highest = group.stored("max_exp_avg_sq")
        v = list(torch._foreach_maximum(v, highest)) if v else v
    first = [1 - beta1**step for step in group.steps]
    second = [1 - beta2**step for step in group.steps]
    scales = [one / two**0.5 for one, two in zip(first, second, strict=True)]
    floors = [one * eps for one in first]
    gain = filters.ema(beta1).gain()
    decaying = [None if group.settings.get("amsgrad") else fading(beta1, beta2, step) for step in group.steps]
    return readings(
        group, root(v, scales, floors), floors, gain=gain, l2=l2, decay=shrink, fast=1 - beta2 > FAST,
        corrections=first, parts=[Parts(one, eps, each) for one, each in zip(first, decaying, strict=True)],
    )


def sparse_adam(group: Group) -> list[Reading]:
    """SparseAdam: P = (1 - b1^t)(sqrt(v) + eps)/sqrt(1 - b2^t); rows without gradient keep their moments."""
    beta1, beta2 = group.settings["betas"]
    v = [old.clone() for old in group.stored("exp_avg_sq")]
    for each, given, dense in zip(v, group.grads or (), group.gradients(), strict=group.planned):
        if given.is_sparse:
            touched = tuple(given.coalesce().indices())
            each[touched] = beta2 * each[touched] + (1 - beta2) * dense[touched].square()
        else:
            each.mul_(beta2).addcmul_(dense, dense, value=1 - beta2)
    first, eps = [1 - beta1**step for step in group.steps], group.settings["eps"]
    scales = [one / (1 - beta2**step) ** 0.5 for one, step in zip(first, group.steps, strict=True)]
    floors = [scale * eps for scale in scales]
    gain = filters.ema(beta1).gain()
    notes = ("rows without a gradient do not move in a step; their weight is what they would be multiplied by",)
    return readings(
        group, root(v, scales, floors), floors, gain=gain, fast=1 - beta2 > FAST, notes=notes, corrections=first,
        parts=[Parts(scale, eps) for scale in scales],
    )


def nadam(group: Group) -> list[Reading]:
    """NAdam: P = sqrt(v/(1 - b2^t)) + eps; q varies with the step for thousands of steps, as its momentum warms up."""
    beta1, beta2 = group.settings["betas"]
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    v = blended(group, "exp_avg_sq", beta2, 1 - beta2, l2)
    P = root(v, [(1 - beta2**step) ** -0.5 for step in group.steps], [eps] * len(v))
    products = group.numbers("mu_product", 1.0)
    parts = [Parts(1.0, eps, fading(0.0, beta2, step)) for step in group.steps]
    read = readings(group, P, [eps] * len(P), l2=l2, decay=shrink, fast=1 - beta2 > FAST, parts=parts)
    psi = group.settings["momentum_decay"]
    return [
        replace(each, gain=_nadam_gain(beta1, psi, step, product, group.planned))
        for each, step, product in zip(read, group.steps, products, strict=True)
    ]


def radam(group: Group) -> list[Reading]:
    """RAdam: Adam's P over the rectification r_t with eps added before the correction; 1 - b1^t while rho_t <= 5."""
    beta1, beta2 = group.settings["betas"]
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    rectified = [rectification(beta2, step) for step in group.steps]
    first = [1 - beta1**step for step in group.steps]
    gain = filters.ema(beta1).gain()
    if not any(rectified):
        return readings(group, first, [0.0] * len(first), gain=gain, l2=l2, decay=shrink, corrections=first)
    scales = [
        one / ((1 - beta2**step) ** 0.5 * r) if r else 1.0
        for one, step, r in zip(first, group.steps, rectified, strict=True)
    ]
    floors = [scale * eps for scale in scales]
    v = blended(group, "exp_avg_sq", beta2, 1 - beta2, l2)
    P: list[Tensor | float] = [
        each if r else one for each, r, one in zip(root(v, scales, floors), rectified, first, strict=True)
    ]
    floors = [floor if r else 0.0 for floor, r in zip(floors, rectified, strict=True)]
    front = partial(_radam_front, beta1, beta2)
    parts = [
        Parts(scale, eps, Fading(beta2, step, front, uncorrected)) if r else None
        for scale, step, r in zip(scales, group.steps, rectified, strict=True)
    ]
    return readings(
        group, P, floors, gain=gain, l2=l2, decay=shrink, fast=1 - beta2 > FAST, parts=parts,
        corrections=[one / (r or 1.0) for one, r in zip(first, rectified, strict=True)],
    )


def _radam_front(beta1: float, beta2: float, step: float) -> float:
    return corrected(beta1, step) * corrected(beta2, step, power=-0.5) / rectification(beta2, step)


def rectification(beta2: float, step: float, least: float = 5.0) -> float:
    """Returns RAdam's r_t, or 0 while rho_t <= 5 and it steps without a denominator (Liu et al. 2019, 1908.03265).

    >>> [round(rectification(0.999, t), 3) for t in (5, 6, 20, 1000)]
    [0.0, 0.026, 0.085, 0.645]
    """
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * step * beta2**step / (1 - beta2**step)
    if length <= least:
        return 0.0
    return float(((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length)) ** 0.5)


def adamax(group: Group) -> list[Reading]:
    """Adamax: P = (1 - b1^t) u with u = max(b2 u, abs(g) + eps)."""
    beta1, beta2 = group.settings["betas"]
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    u = group.stored("exp_inf")
    first = [1 - beta1**step for step in group.steps]
    if group.planned and u:
        sizes = torch._foreach_abs(group.gradients(l2))
        torch._foreach_add_(sizes, eps)
        u = list(torch._foreach_maximum(torch._foreach_mul(u, beta2), sizes))
    P = list(torch._foreach_mul(u, first)) if u else u
    floors = [one * eps for one in first]
    gain = filters.ema(beta1).gain()
    return readings(group, P, floors, gain=gain, l2=l2, decay=shrink, fast=1 - beta2 > FAST, corrections=first)


def rmsprop(group: Group) -> list[Reading]:
    """RMSprop: P = sqrt(v) + eps without bias correction, sqrt(v - gbar^2) + eps when centered; q = 1/(1 + mu)."""
    alpha, eps = group.settings["alpha"], group.settings["eps"]
    l2, shrink = decays(group)
    v = blended(group, "square_avg", alpha, 1 - alpha, l2)
    if group.settings["centered"] and v:
        mean = group.stored("grad_avg")
        if group.planned:
            mean = list(torch._foreach_lerp(mean, group.gradients(l2), 1 - alpha))
        v = list(torch._foreach_addcmul(v, mean, mean, value=-1.0))
        torch._foreach_clamp_min_(v, 0.0)
    P = root(v, [1.0] * len(v), [eps] * len(v))
    gain = filters.heavy_ball(group.settings["momentum"]).gain()
    decaying = None if group.settings["centered"] else Fading(alpha, 0.0, uncorrected, uncorrected)
    return readings(
        group, P, [eps] * len(P), gain=gain, l2=l2, decay=shrink, fast=1 - alpha > FAST,
        parts=[Parts(1.0, eps, decaying)] * len(P),
    )


def adagrad(group: Group) -> list[Reading]:
    """Adagrad: P = sqrt(sum of g^2) + eps, step size lr/(1 + (t - 1) lr_decay)."""
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    v = blended(group, "sum", 1.0, 1.0, l2)
    P = root(v, [1.0] * len(v), [eps] * len(v))
    lr, slowing = group.settings["lr"], group.settings["lr_decay"]
    lrs = [lr / (1 + (step - 1) * slowing) for step in group.steps]
    return readings(group, P, [eps] * len(P), lrs=lrs, l2=l2, decay=shrink, parts=[Parts(1.0, eps)] * len(P))


def adadelta(group: Group) -> list[Reading]:
    """Adadelta: P = sqrt(v + eps)/sqrt(d + eps), d the average of squared moves before this one.

    Stored state only has d after the last step: without gradients it is the one that the next step will use.
    """
    rho, eps = group.settings["rho"], group.settings["eps"]
    l2, shrink = decays(group)
    v = blended(group, "square_avg", rho, 1 - rho, l2)
    if v:
        torch._foreach_add_(v, eps)
        moves = torch._foreach_add(group.stored("acc_delta"), eps)
        torch._foreach_div_(v, moves)
        torch._foreach_sqrt_(v)
    return readings(group, v, [0.0] * len(v), l2=l2, decay=shrink, fast=1 - rho > FAST)


def decays(group: Group) -> tuple[float, float]:
    """Returns (l2, 1 - a): decay that passes through the gradient, and decay that shrinks the parameter."""
    decay = group.settings.get("weight_decay", 0.0)
    if group.settings.get("decoupled_weight_decay"):
        return 0.0, group.settings["lr"] * decay
    return decay, 0.0


def blended(group: Group, key: str, keep: float, admit: float, l2: float = 0.0) -> list[Tensor]:
    """Returns keep * v + admit * g^2, or a copy of the stored v where no step is planned; the caller's to write to."""
    old = group.stored(key)
    if not old:
        return []
    if not group.planned:
        return [each.clone() for each in old]
    grads = group.gradients(l2)
    new = list(torch._foreach_mul(grads, grads))
    if admit != 1.0:
        torch._foreach_mul_(new, admit)
    torch._foreach_add_(new, old, alpha=keep)
    return new


def root(v: list[Tensor], scales: Sequence[float], shifts: Sequence[float]) -> list[Tensor]:
    """Turns each v into scale * sqrt(v) + shift, in place, and returns them."""
    if v:
        torch._foreach_sqrt_(v)
        torch._foreach_mul_(v, list(scales))
        torch._foreach_add_(v, list(shifts))
    return v


@lru_cache(maxsize=64)  # the same for all parameters of a group that have taken the same steps
def _nadam_gain(beta1: float, psi: float, step: float, product: float, planned: bool) -> float:
    now, following = (beta1 * (1 - 0.5 * 0.96 ** (at * psi)) for at in (step, step + 1))
    return filters.nadam(now, following, product * now if planned else product, beta1).gain()


def readings(
    group: Group,
    P: Sequence[Tensor | float],
    floors: Sequence[float],
    *,
    lrs: Sequence[float] | None = None,
    gain: float = 1.0,
    l2: float = 0.0,
    decay: float = 0.0,
    fast: bool = False,
    notes: tuple[str, ...] = (),
    corrections: Sequence[float] | None = None,
    parts: Sequence[Parts | None] | None = None,
) -> list[Reading]:
    """Returns one reading for each denominator of a group whose parameters differ in little else."""
    lrs = lrs or [group.settings["lr"]] * len(P)
    return [
        Reading(
            denominator=each, lr=lr, gain=gain, l2=l2, decay=decay, floor=floor, approximate=fast, notes=notes,
            correction=correction, parts=made_of,
        )
        for each, lr, floor, correction, made_of in zip(
            P, lrs, floors, corrections or [1.0] * len(P), parts or [None] * len(P), strict=True
        )
    ]
