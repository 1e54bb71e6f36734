"""Thresholds of a live optimizer: the table's closed forms, with the settings and step counts of this moment."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import torch
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability import rules, table
from foreshock.stability.group import Group, groups, host
from foreshock.stability.reading import readings, speaks
from foreshock.stability.registry import Reading, factor
from foreshock.stability.settings import HARMLESS, PAIRS
from foreshock.stability.threshold import Threshold, stability_threshold
from foreshock.stability.twins import members

__all__ = ["thresholds"]


def thresholds(optimizer: Optimizer | Sequence[Optimizer]) -> tuple[Threshold, ...]:
    """Returns one threshold for each param group, for the step about to be taken: count, lr and flags are read now.

    Where a threshold differs from tensor to tensor (Adafactor, Muon) it is the least of the group. Classes without a
    closed form are read from their stored state, by a registered rule or a Nyquist probe.

    Errors: UsageError for optimizers without a threshold (LBFGS), and for unknown ones before their first step.

    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> [round(each.value, 3) for each in thresholds(torch.optim.NAdam([weight], lr=1.0))]
    [1.942]
    """
    result: list[Threshold] = []
    for each in members(optimizer):
        shipped = rules.find(type(each))
        if isinstance(shipped, str):
            raise UsageError(shipped)
        if shipped is not None and speaks(shipped, each):
            result += [_named(shipped.name, group) for group in groups(each, None, stateless=True)]
        else:
            result += _measured(each)
    return tuple(result)


def _named(name: str, group: Group) -> Threshold:
    rule, _ = table.find(name)
    known = {**rule.settings, **dict.fromkeys(rule.synonyms)}
    settings: dict[str, Any] = {
        key: value
        for key, value in group.settings.items()
        if key in known or key in PAIRS or key in ("maximize", "adjust_lr_fn", *HARMLESS)
    }
    step = max(group.steps, default=0.0) + 1
    if "step" in rule.settings:
        settings["step"] = step
    settings |= _present(name, group, step)
    return replace(stability_threshold(name, **settings), name=type(group.optimizer).__name__)


def _present(name: str, group: Group, step: float) -> Mapping[str, Any]:
    """Returns the settings of a rule that are not in the group: they depend on state, on the step or on tensors."""
    settings = group.settings
    if name == "NAdam":
        now = settings["betas"][0] * (1 - 0.5 * 0.96 ** (step * settings["momentum_decay"]))
        known = zip(group.steps, group.numbers("mu_product", 1.0), strict=True)
        products = [product for at, product in known if at + 1 == step]
        return {"mu_product": now * (products[0] if products else 1.0)}
    if name == "Adafactor":
        sizes = host(torch.linalg.vector_norm(p.detach()) / max(1, p.numel()) ** 0.5 for p in group.params)
        return {"rms": max(sizes, default=0.0), "eps2": settings["eps"][1], "eps": None}
    if name == "Muon" and group.params:
        even = settings.get("adjust_lr_fn") == "match_rms_adamw"
        tallest = max((p.shape for p in group.params), key=max if even else lambda shape: shape[0] / max(1, shape[1]))
        return {"rows": max(1, tallest[0]), "columns": max(1, tallest[1])}
    if name == "AdEMAMix":
        alpha, beta3 = rules.mixture(settings, step)
        return {"alpha": alpha, "betas": (*settings["betas"][:2], beta3)}
    if name == "ScheduleFree":
        beta, lr, c = rules.schedule(group, ahead=1)
        return {"beta1": beta, "betas": None, "lr": lr, "c": c}
    return {}


def _measured(optimizer: Optimizer) -> list[Threshold]:
    """Returns the least threshold of each group, from what a rule or a probe says about its parameters."""
    read, at, result = readings(optimizer, None), 0, []
    kind = type(optimizer).__name__
    for group in optimizer.param_groups:
        mine = [each for each in read[at : at + len(group["params"])] if each is not None]
        at += len(group["params"])
        tightest = max(mine, key=factor, default=Reading(denominator=1.0, lr=0.0))
        most = factor(tightest)
        value = 1 / most if most else float("inf")
        q = most * (2.0 - tightest.decay) / tightest.lr if tightest.lr else 0.0
        result.append(
            Threshold(
                name=kind,
                value=value,
                quantity="lambda_max(P^-1 (H + l2 I))" if tightest.l2 else "lambda_max(P^-1 H)",
                formula="(2-decay)/(q*lr)",
                reference="a rule registered for this class, or a Nyquist probe of this optimizer",
                assumptions=("P and H change slowly against the oscillation", *tightest.notes),
                gain=q,
                settings=MappingProxyType({}),
                formal=tightest.formal,
                derivation=f"(2-{tightest.decay:g})/({q:.6g}*{tightest.lr:g}) = {value:.6g}",
                lr=tightest.lr,
                decay=tightest.decay,
            )
        )
    return result
