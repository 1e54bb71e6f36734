"""What must follow a changed learning rate, or it is set back at the next step: groups and schedulers."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from foreshock.batch_size.moments import Undo, keep, set_item

__all__ = ["scale_rates"]

IN_GROUP = ("initial_lr", "max_lr", "min_lr", "swa_lr")  # beside `lr`, where schedulers keep theirs
LISTS = ("base_lrs", "max_lrs", "min_lrs", "_last_lr")
SINGLE = ("eta_min",)


def scale_rates(optimizer: Optimizer, schedulers: Iterable[Any], factor: float, undo: list[Undo]) -> list[str]:
    """Multiplies all learning rates, of the groups and of what schedulers come back to; returns what is to be said.

    A scheduler of `torch.optim.lr_scheduler` goes on as the one of a training that had begun with `factor` times the
    learning rate.

    Args:
        optimizer: whose groups hold `lr`.
        schedulers: as many as there are; those inside of others are found.
        factor: by which.
        undo: takes what puts each change back.
    """
    said = []
    for group in optimizer.param_groups:
        rate = group["lr"]
        if isinstance(rate, Tensor):  # it may be part of a captured graph
            keep(rate, undo)
            rate.mul_(factor)
        else:
            set_item(group, "lr", rate * factor, undo)
        for name in IN_GROUP:
            if name in group and group[name] is not None:
                set_item(group, name, group[name] * factor, undo)
    waiting, seen = list(schedulers), set[int]()
    while waiting:
        scheduler = waiting.pop()
        if id(scheduler) in seen:
            continue
        seen.add(id(scheduler))
        inside = getattr(scheduler, "_schedulers", None)
        waiting += list(inside) if isinstance(inside, (list, tuple)) else []
        held, known = vars(scheduler), bool(inside)
        for name in LISTS:
            if isinstance(held.get(name), (list, tuple)):
                set_item(held, name, [value * factor for value in held[name]], undo)
                known = True
        for name in SINGLE:
            if isinstance(held.get(name), (int, float)):
                set_item(held, name, held[name] * factor, undo)
        if not known:
            name = type(scheduler).__name__
            said.append(f"{name} holds no learning rates that are known; it may set them back at its next step")
    return said
