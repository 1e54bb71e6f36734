"""Takes an optimizer's step with something changed for this one: its learning rates, its length, its largest parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock import distributed

Take = Callable[[], object]


@contextmanager
def learning_rate(optimizer: Optimizer, factor: float) -> Iterator[None]:
    """Multiplies the learning rates of all groups inside, and puts them back as they were."""
    if factor == 1.0:
        yield
        return
    before = [(group, group["lr"]) for group in optimizer.param_groups if "lr" in group]
    kept = [rate.clone() if isinstance(rate, Tensor) else rate for _, rate in before]
    for group, rate in before:
        if isinstance(rate, Tensor):
            rate.mul_(factor)  # in place: captured and compiled steps hold this very tensor
        else:
            group["lr"] = rate * factor
    try:
        yield
    finally:
        for (group, rate), was in zip(before, kept, strict=True):
            if isinstance(rate, Tensor):
                rate.copy_(was)
            else:
                group["lr"] = was


def scaled(optimizer: Optimizer, factor: float, take: Take) -> None:
    """Takes a step and goes only `factor` of its way; moments are as after the whole step.

    Args:
        factor: share of the update, whatever the optimizer.
        take: takes the step.
    """
    before = copies(optimizer)
    with after_step(optimizer, lambda: _back(before, 1.0 - factor)):
        take()


def clipped(optimizer: Optimizer, limit: float, take: Take) -> int:
    """Takes a step and shortens the update of each tensor whose root mean square is above `limit` learning rates.

    Source: Wortsman et al. 2023, arXiv 2304.13013 (StableAdamW), which shortens by RMS(g / sqrt(v)); this looks at
    the update itself, momentum and decay included, and so serves any optimizer.

    Returns:
        How many tensors were shortened; waits for the device.
    """
    before, shortened = copies(optimizer), 0

    def shorten() -> None:
        nonlocal shortened
        rates = {id(param): group.get("lr", 1.0) for group in optimizer.param_groups for param in group["params"]}
        moved = [(param, old, _rms(param, old), rates[id(param)]) for param, old in before]
        sizes = torch.stack([rms.double() if rms.device.type != "mps" else rms for _, _, rms, _ in moved]).tolist()
        for (param, old, _, rate), size in zip(moved, sizes, strict=True):
            most = limit * float(rate)
            if size > most:
                _back([(param, old)], 1.0 - most / size)
                shortened += 1

    with after_step(optimizer, shorten):
        take()
    return shortened


def copies(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Returns (parameter, copy of its values) of all that have gradients."""
    params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return [(param, param.detach().clone()) for param in params]


@contextmanager
def after_step(optimizer: Optimizer, change: Callable[[], None]) -> Iterator[None]:
    """Changes the parameters right after the step that is taken inside, before anybody else's hook looks at them."""

    def hook(*_: Any) -> None:
        change()

    handle = optimizer.register_step_post_hook(hook)
    hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
    hooks.move_to_end(handle.id, last=False)
    try:
        yield
    finally:
        handle.remove()


@torch.no_grad()
def _back(moved: list[tuple[Tensor, Tensor]], share: float) -> None:
    """Goes back by a share of the way to the old values."""
    for param, old in moved:
        param.add_((old - param).mul_(share))


def _rms(param: Tensor, old: Tensor) -> Tensor:
    difference = param.detach() - old
    if distributed.sharded(difference):
        difference = difference.full_tensor()  # type: ignore[attr-defined]
    return difference.abs().float().square().mean().sqrt()
