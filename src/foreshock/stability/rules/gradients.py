"""Optimizers that divide by nothing (SGD, ASGD, quasi-hyperbolic momentum), and Rprop, which only takes the sign."""

from __future__ import annotations

import torch

from foreshock.stability import filters
from foreshock.stability.group import Group
from foreshock.stability.registry import Reading
from foreshock.stability.rules.moments import decays, readings

__all__ = ["asgd", "qhm", "rprop", "sgd"]


def sgd(group: Group) -> list[Reading]:
    """SGD: P = 1, q = (1 - tau)/(1 + mu), with Nesterov 1 + mu q; torch's first step stores the raw gradient."""
    settings = group.settings
    momentum, dampening = settings["momentum"], settings["dampening"]
    kind = filters.nesterov if settings["nesterov"] else filters.heavy_ball
    gain = kind(momentum, dampening).gain() if momentum else 1.0
    begins = any(state.get("momentum_buffer") is None for state in group.states)
    notes = (
        (f"the first momentum step stores the raw gradient: it is {1 / (1 - dampening):g} times too long",)
        if momentum and 0 < dampening < 1 and begins
        else ()
    )
    count = len(group.params)
    return readings(group, [1.0] * count, [0.0] * count, gain=gain, l2=settings["weight_decay"], notes=notes)


def asgd(group: Group) -> list[Reading]:
    """ASGD: P = 1, step size eta_t = lr/(1 + lambd lr (t - 1))^alpha, decay 1 - a = lambd eta_t."""
    settings = group.settings
    lr, lambd = settings["lr"], settings["lambd"]
    if group.planned:
        etas = group.numbers("eta", lr)
    else:
        etas = [lr / (1 + lambd * lr * (max(step, 1) - 1)) ** settings["alpha"] for step in group.steps]
    return [Reading(denominator=1.0, lr=eta, l2=settings["weight_decay"], decay=lambd * eta) for eta in etas]


def qhm(group: Group) -> list[Reading]:
    """QHM (Ma and Yarats 2019, arXiv 1810.06801): P = 1, u = (1 - nu) g + nu m; decay coupled or "direct"."""
    settings = group.settings
    gain = filters.qhm(settings["nu"], settings["momentum"]).gain()
    l2, shrink = decays(group)
    if settings.get("weight_decay_type") == "direct":
        l2, shrink = 0.0, settings["lr"] * l2
    count = len(group.params)
    return readings(group, [1.0] * count, [0.0] * count, gain=gain, l2=l2, decay=shrink)


def rprop(group: Group) -> list[Reading]:
    """Rprop, formally: P = abs(g)/step size, since the move is the sign of g times the step size.

    Where the sign has just changed the step is left out, and the weight is 0.
    """
    minus, plus = group.settings["etas"]
    least, most = group.settings["step_sizes"]
    lr = group.settings["lr"]
    result = []
    grads = group.gradients() or group.stored("prev")
    for grad, prev, size, state in zip(
        grads, group.stored("prev"), group.stored("step_size"), group.states, strict=True
    ):
        if group.planned:
            turn = grad * prev
            size = size if "step_size" in state else torch.full_like(grad, lr)
            scale = torch.where(turn > 0, plus, 1.0).masked_fill(turn < 0, minus)
            size, grad = (size * scale).clamp(least, most), grad.masked_fill(turn < 0, 0.0)
        result.append(Reading(denominator=grad.abs() / size, lr=1.0, formal=True))
    return result
