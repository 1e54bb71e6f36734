"""Takes an optimizer's step with something changed for this one: its learning rates, its length, its largest parts."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock import distributed

Change = Callable[[], None]


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


def scaled(optimizer: Optimizer, factor: float) -> Change:
    """Returns what is to be called after the step, so that it goes only `factor` of its way.

    Moments are as after the whole step, whatever the optimizer.
    """
    before = copies(optimizer)
    return lambda: _back(before, 1.0 - factor)


def clipped(optimizer: Optimizer, limit: float) -> Change:
    """Returns what is to be called after the step, so that no tensor has moved by an RMS of more than `limit` rates.

    Source: Wortsman et al. 2023, arXiv 2304.13013 (StableAdamW), which shortens by RMS(g / sqrt(v)); this looks at
    the update itself, momentum and decay included, and so serves any optimizer. Waits for the device.
    """
    before = copies(optimizer)

    def shorten() -> None:
        rates = {id(param): group.get("lr", 1.0) for group in optimizer.param_groups for param in group["params"]}
        moved = [(param, old, _rms(param, old), rates[id(param)]) for param, old in before]
        if not moved:
            return
        sizes = torch.stack([rms.double() if rms.device.type != "mps" else rms for _, _, rms, _ in moved]).tolist()
        for (param, old, _, rate), size in zip(moved, sizes, strict=True):
            most = limit * float(rate)
            if size > most:
                _back([(param, old)], 1.0 - most / size)

    return shorten


def copies(optimizer: Optimizer) -> list[tuple[Tensor, Tensor]]:
    """Returns (parameter, copy of its values) of all that have gradients."""
    params = [param for group in optimizer.param_groups for param in group["params"] if param.grad is not None]
    return [(param, param.detach().clone()) for param in params]


def first_after(optimizer: Optimizer, change: Callable[..., None]) -> Any:
    """Registers a hook that is called right after each step, before anybody else's; returns its handle."""
    handle = optimizer.register_step_post_hook(change)
    hooks: Any = optimizer._optimizer_step_post_hooks  # an OrderedDict
    hooks.move_to_end(handle.id, last=False)
    return handle


@contextmanager
def after_step(optimizer: Optimizer, change: Change) -> Iterator[None]:
    """Changes the parameters right after the step that is taken inside, before anybody else's hook looks at them."""
    handle = first_after(optimizer, lambda *_: change())
    try:
        yield
    finally:
        handle.remove()


@contextmanager
def own_options(optimizer: Optimizer) -> Iterator[None]:
    """Keeps learning rates and whatever else the groups say as they are, although a snapshot is put back inside."""
    kept = [{name: value for name, value in group.items() if name != "params"} for group in optimizer.param_groups]
    tensors = [(value, value.clone()) for group in kept for value in group.values() if isinstance(value, Tensor)]
    try:
        yield
    finally:
        with torch.no_grad():
            for value, was in tensors:
                value.copy_(was)
        for group, options in zip(optimizer.param_groups, kept, strict=True):
            group.update(options)


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
