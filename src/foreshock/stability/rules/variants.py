"""Elementwise relatives of Adam from outside torch, in the conventions of their authors' code.

Other packages use the names with conventions of their own, so a rule of this file is compared once with a Nyquist
probe of the optimizer it speaks for (see `weights`), and gives way to the probe where the two differ.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from foreshock.stability import filters
from foreshock.stability.group import Group
from foreshock.stability.parts import Parts, fading
from foreshock.stability.registry import Reading
from foreshock.stability.rules.moments import FAST, blended, decays, readings, rectification, root

__all__ = ["adabelief", "ademamix", "mixture", "padam", "qhadam", "yogi"]


def padam(group: Group) -> list[Reading]:
    """Padam (Chen et al. 2018, arXiv 1806.06763): P = (1 - b1^t)/sqrt(1 - b2^t) (sqrt(v) + eps)^(2 partial)."""
    beta1, beta2 = group.settings["betas"]
    power = 2 * group.settings.get("partial", group.settings.get("p", 0.25))
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    v = blended(group, "exp_avg_sq", beta2, 1 - beta2, l2)
    if group.settings.get("amsgrad") and v:
        v = list(torch._foreach_maximum(v, group.stored("max_exp_avg_sq")))
    P = root(v, [1.0] * len(v), [eps] * len(v))
    first = [1 - beta1**step for step in group.steps]
    scales = [one / (1 - beta2**step) ** 0.5 for one, step in zip(first, group.steps, strict=True)]
    P = [scale * each.pow_(power) for each, scale in zip(P, scales, strict=True)]
    floors = [scale * eps**power for scale in scales]
    gain = filters.ema(beta1).gain()
    return readings(group, P, floors, gain=gain, l2=l2, decay=shrink, fast=1 - beta2 > FAST, corrections=first)


def qhadam(group: Group) -> list[Reading]:
    """QHAdam (Ma and Yarats 2019, arXiv 1810.06801): P = sqrt(nu2 v + (1 - nu2) g^2) + eps, u = (1 - nu1) g + nu1 m.

    Its averages are normalised by counting weights, b_t = 1 - 1/w_t with w_t = 1 + b w_{t-1}. Stored state does not
    hold the last gradient: without gradients nu2 counts as 1.
    """
    settings = group.settings
    (beta1, beta2), (nu1, nu2), eps = settings["betas"], settings["nus"], settings["eps"]
    l2, shrink = settings["weight_decay"], 0.0
    if settings.get("decouple_weight_decay"):
        l2, shrink = 0.0, settings["lr"] * l2
    result = []
    weights = [group.numbers(f"beta{i}_weight", 0.0) for i in (1, 2)]
    grads = group.gradients(l2)
    for place, v in enumerate(group.stored("exp_avg_sq")):
        one, two = (
            1 + beta * each[place] if group.planned else max(each[place], 1.0)
            for beta, each in zip((beta1, beta2), weights, strict=True)
        )
        P = v.clone()
        if group.planned:
            square = grads[place].square()
            P = P.lerp_(square, 1 / two).mul_(nu2).add_(square, alpha=1 - nu2)
        gain = filters.qhm(nu1, 1 - 1 / one).gain()
        P = P.sqrt_().add_(eps)
        result += [
            Reading(
                denominator=P, lr=settings["lr"], gain=gain, l2=l2, decay=shrink, floor=eps, approximate=1 / two > FAST,
                parts=Parts(1.0, eps),
            )
        ]
    return result


def ademamix(group: Group) -> list[Reading]:
    """AdEMAMix (Pagliardini et al. 2024, arXiv 2409.03137): P = sqrt(v/(1 - b2^t)) + eps, two averages in u.

    u = m/(1 - b1^t) + alpha_t n: only the fast average m is corrected, so the correction is part of the gain.
    """
    settings = group.settings
    beta1, beta2, _ = settings["betas"]
    eps, decay = settings["eps"], settings["lr"] * settings["weight_decay"]
    v = blended(group, "exp_avg_sq", beta2, 1 - beta2)
    P = root(v, [(1 - beta2**step) ** -0.5 for step in group.steps], [eps] * len(v))
    result = []
    for each, step in zip(P, group.steps, strict=True):
        alpha, beta3 = mixture(settings, step)
        gain = filters.ema(beta1).gain() / (1 - beta1**step) + alpha * filters.ema(beta3).gain()
        result.append(
            Reading(
                denominator=each, lr=settings["lr"], gain=gain, decay=decay, floor=eps, approximate=1 - beta2 > FAST,
                parts=Parts(1.0, eps, fading(0.0, beta2, step)),
            )
        )
    return result


def yogi(group: Group) -> list[Reading]:
    """Yogi (Zaheer et al. 2018): Adam's P with v <- v - (1 - b2) sign(v - g^2) g^2, v starting at 1e-6."""
    beta1, beta2 = group.settings["betas"]
    eps, (l2, shrink) = group.settings["eps"], decays(group)
    v = [each.clone() for each in group.stored("exp_avg_sq")]
    if group.planned:
        start = group.settings.get("initial_accumulator", 1e-6)
        for each, state, grad in zip(v, group.states, group.gradients(l2), strict=True):
            square = grad * grad
            each.add_(0.0 if "exp_avg_sq" in state else start)
            each.addcmul_(torch.sign(each - square), square, value=beta2 - 1)
    first = [1 - beta1**step for step in group.steps]
    scales = [one / (1 - beta2**step) ** 0.5 for one, step in zip(first, group.steps, strict=True)]
    floors = [one * eps for one in first]
    gain = filters.ema(beta1).gain()
    return readings(
        group, root(v, scales, floors), floors, gain=gain, l2=l2, decay=shrink, fast=1 - beta2 > FAST,
        corrections=first, parts=[Parts(one, eps) for one in first],
    )


def adabelief(group: Group) -> list[Reading]:
    """AdaBelief (Zhuang et al. 2020, arXiv 2010.07468): Adam's P on s = average of (g - m)^2, eps added to s too.

    With `rectify` as RAdam; decay decoupled with `weight_decouple`, by weight_decay alone with `fixed_decay`.
    """
    settings = group.settings
    (beta1, beta2), eps = settings["betas"], settings["eps"]
    flags = {
        name: bool(settings.get(name, getattr(group.optimizer, name, False)))
        for name in ("rectify", "weight_decouple", "fixed_decay")
    }
    l2, shrink = settings["weight_decay"], 0.0
    if flags["weight_decouple"]:
        l2, shrink = 0.0, l2 * (1.0 if flags["fixed_decay"] else settings["lr"])
    s = [each.clone() for each in group.stored("exp_avg_var")]
    if group.planned and s:
        grads = group.gradients(l2)
        surprise = torch._foreach_sub(grads, torch._foreach_lerp(group.stored("exp_avg"), grads, 1 - beta1))
        torch._foreach_mul_(s, beta2)
        torch._foreach_addcmul_(s, surprise, surprise, value=1 - beta2)
        if settings.get("amsgrad"):
            s = list(torch._foreach_maximum(s, group.stored("max_exp_avg_var")))
        torch._foreach_add_(s, eps)
    elif settings.get("amsgrad"):
        s = [each.clone() for each in group.stored("max_exp_avg_var")]
    P, floors, corrections = [], [], []
    for each, step in zip(s, group.steps, strict=True):
        first, second = 1 - beta1**step, (1 - beta2**step) ** 0.5
        r = rectification(beta2, step, 5.0 - 1e-12) if flags["rectify"] else 1.0
        P.append(each.sqrt_().div_(second).add_(eps).mul_(first / r) if r else torch.full_like(each, first))
        floors.append(first / r * (eps**0.5 / second + eps) if r else first)
        corrections.append(first / (r or 1.0))
    gain = filters.ema(beta1).gain()
    return readings(group, P, floors, gain=gain, l2=l2, decay=shrink, fast=1 - beta2 > FAST, corrections=corrections)


def mixture(settings: Mapping[str, Any], step: float) -> tuple[float, float]:
    """Returns AdEMAMix's (alpha, beta3) at a step: alpha warms up linearly, beta3 linearly in its half-life."""
    beta1, _, last = settings["betas"]
    ramp = _warm(step, settings.get("beta3_warmup"))
    beta3 = last
    if ramp < 1:
        start, end = (math.log(0.5) / math.log(beta + 1e-8) - 1 for beta in (beta1, last))
        beta3 = 0.5 ** (1 / ((1 - ramp) * start + ramp * end + 1))
    return settings["alpha"] * _warm(step, settings.get("alpha_warmup")), beta3


def _warm(step: float, length: float | None) -> float:
    return step / length if length is not None and step < length else 1.0
