"""How far a live optimizer moves its parameters after one burst of gradient: in closed form, or measured on a copy."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from inspect import unwrap
from types import MappingProxyType
from typing import Any, cast

from torch import Tensor
from torch.optim import Optimizer

from foreshock import bursts
from foreshock.bursts import BurstResponse
from foreshock.errors import UsageError
from foreshock.optim.pushed import BURST, early, pushed

__all__ = ["BurstResponse", "burst_response"]

# They evaluate the loss inside step(), so that a gradient alone does not say what they will do.
CLOSURES = frozenset({"LBFGS", "SAM", "GSAM", "ASAM", "SophiaH", "AdaHessian"})
# Classes of training frameworks that pass everything on -> the attribute with the optimizer they hold.
WRAPPERS = {"AcceleratedOptimizer": "optimizer", "LightningOptimizer": "_optimizer"}
# Classes that follow the conventions of the table: all others have to agree with a copy that is pushed.
TRUSTED = ("torch.optim", "foreshock.optim")
CHECKED, AGREE = (3, 24), 5e-3  # step of the burst and updates that are compared; relative difference that is none


def burst_response(
    optimizer: Optimizer | str | type,
    *,
    ratio: float = math.inf,
    step: float = math.inf,
    usual: float = math.inf,
    **settings: object,
) -> BurstResponse:
    """Returns how far an optimizer moves a coordinate after one isolated burst of gradient, in learning rates.

    Of a live optimizer the closed form for its class and its groups' settings, where there is one, else what a fresh
    copy does that is fed noise and then one burst; optimizer, parameters and random streams stay as they are. Groups
    that answer differently are all in `groups`, and the response itself is the one that goes furthest.

    Args:
        optimizer: any torch optimizer whose step needs no loss; or a name, or a class, with its settings.
        ratio: size of the burst in usual gradients, |g|/sqrt(v); beside an infinite one nothing else counts.
        step: number of the step that the burst comes at, from 1 on; by default one in the long run.
        usual: size of a usual gradient, where eps is to count beside it; not where the response is measured.
        settings: of an optimizer that is named, as torch spells them.

    Errors: UsageError for an optimizer that evaluates the loss inside its step, for one that cannot be copied, for
    settings given beside a live one, and as of `foreshock.bursts.burst_response`.

    Source: SoftSignSGD 2025, arXiv 2507.06464 (S3; its bound); the closed forms are derived.

    >>> import torch
    >>> weight = torch.nn.Parameter(torch.ones(2))
    >>> print(burst_response(torch.optim.AdamW([weight], lr=1e-3, betas=(0.9, 0.95))))
    AdamW(0.9, 0.95) moves a coordinate 5.84 learning rates after one burst, 0.447 of them in its largest step.
    >>> round(burst_response("s3", p=2).displacement, 2)
    8.7
    """
    if isinstance(optimizer, (str, type)):
        return bursts.burst_response(optimizer, ratio=ratio, step=step, usual=usual, **settings)
    live = _bare(optimizer)
    if settings:
        raise UsageError(
            f"a live optimizer brings its own settings; given besides: {', '.join(settings)}. Change them in its "
            "param_groups, or ask by name"
        )
    name = type(live).__name__
    if name in CLOSURES:
        raise UsageError(f"{name} evaluates the loss inside step(), so a burst of gradient alone does not say its move")
    found: list[BurstResponse] = []
    for group in live.param_groups:
        each = _of_group(live, group, ratio=ratio, step=step, usual=usual)
        if all(each.text != other.text for other in found):
            found.append(each)
    if not found:
        raise UsageError(f"{name} has no parameter groups: give it parameters first")
    worst = max(found, key=lambda each: (each.displacement, each.peak))
    return replace(worst, groups=tuple(found)) if len(found) > 1 else worst


def _bare(optimizer: object) -> Optimizer:
    """Takes the wrappers of training frameworks off."""
    while type(optimizer).__name__ in WRAPPERS:
        optimizer = getattr(optimizer, WRAPPERS[type(optimizer).__name__])
    if not isinstance(optimizer, Optimizer):
        raise UsageError(
            f"optimizer must be a torch.optim.Optimizer, or the name or class of one, not {type(optimizer).__name__}"
        )
    return optimizer


def _of_group(live: Optimizer, group: Mapping[str, Any], *, ratio: float, step: float, usual: float) -> BurstResponse:
    """Returns the response of one parameter group."""
    settings = {key: _number(value) for key, value in group.items() if key != "params"}
    found = bursts.of_group(type(live), settings, ratio=ratio, step=step, usual=usual)
    if found is not None and (_trusted(type(live)) or _agrees(live, group, settings)):
        return found
    name = type(live).__name__
    if math.isfinite(usual):
        raise UsageError(f"usual has no meaning for {name}, whose response is measured; leave it out")
    measured = pushed(live, group, ratio=ratio, step=step)
    course = measured.course
    numbers = course[0], measured.peak, measured.displacement
    known = {key: value for key, value in settings.items() if isinstance(value, float) and key != "lr"}
    pair = settings.get("betas")
    known |= {f"beta{place}": beta for place, beta in enumerate(pair, 1)} if isinstance(pair, tuple) else {}
    shown = ", ".join(f"{value:g}" for key, value in known.items() if key.startswith("beta"))
    label = f"{name}({shown})" if shown else name
    text = bursts.worded(label, numbers, bursts.one_burst(ratio, step, usual), power=measured.power)
    return BurstResponse(
        optimizer=name, settings=MappingProxyType(known), first=numbers[0], peak=numbers[1], displacement=numbers[2],
        sup=math.inf if measured.power else math.nan, course=course, method="simulated", unit="learning rates",
        label=label, text=text, ratio=ratio, step=step,
    )  # fmt: skip


def _number(value: object) -> object:
    """Returns a setting with numbers in the place of tensors."""
    if isinstance(value, Tensor) and value.numel() == 1:
        return float(value.detach())
    return tuple(map(_number, value)) if isinstance(value, (list, tuple)) else value


def _trusted(kind: type) -> bool:
    """Returns whether a class is one whose conventions the table follows, or takes its step from one."""
    ancestor = next((each for each in kind.__mro__ if each.__module__.startswith(TRUSTED)), None)
    if ancestor is None or ancestor is Optimizer:
        return False
    return unwrap(cast(type[Optimizer], kind).step) is unwrap(cast(type[Optimizer], ancestor).step)


def _agrees(live: Optimizer, group: Mapping[str, Any], settings: Mapping[str, object]) -> bool:
    """Returns whether a copy that is pushed early does what the table says of its name."""
    step, updates = CHECKED
    told = bursts.first_updates(type(live), settings, bursts.one_burst(BURST, step, math.inf), updates)
    seen = early(live, group, step=step, updates=updates)
    return all(abs(one - two) <= AGREE * max(told) for one, two in zip(seen, told, strict=False))
