"""Which of the ways to make S3's update serves some tensors: compiled, in blocks, in whole lists, one by one."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.optim import blocks, update
from foreshock.optim.blocks import Tensors
from foreshock.optim.settings import Settings

__all__ = ["take"]

Lists = tuple[list[Tensor], list[Tensor], list[Tensor], list[Tensor]]


def take(
    params: Tensors,
    grads: Tensors,
    exp_avgs: Tensors,
    roots: Tensors,
    settings: Settings,
    *,
    foreach: bool | None,
    fused: bool | None,
) -> None:
    """Makes one step in place, by the fastest way there is, or by the one that is asked for.

    Raises:
        UsageError: `fused` is True and there is no compiled way for these tensors.
    """
    for lists in _alike(params, grads, exp_avgs, roots):
        if torch.compiler.is_compiling():  # the compiler fuses by itself
            update.update(*lists, **settings)
            continue
        plain = lists[0][0].device.type == "cpu" and all(type(each) in (Tensor, nn.Parameter) for each in lists[0])
        if fused:
            raise UsageError("no compiled way")
        if foreach is False:
            for one in zip(*lists, strict=True):
                update.update(*([each] for each in one), **settings)
        elif plain:
            blocks.blocked(*lists, **settings)
        else:
            update.update(*lists, **settings)


def _alike(
    params: Tensors, grads: Tensors, exp_avgs: Tensors, roots: Tensors
) -> list[Lists]:
    """Returns tensors in lists of one device and one type."""
    found: dict[tuple[torch.device, torch.dtype], Lists] = {}
    for four in zip(params, grads, exp_avgs, roots, strict=True):
        lists = found.setdefault((four[0].device, four[0].dtype), ([], [], [], []))
        for into, each in zip(lists, four, strict=True):
            into.append(each)
    return list(found.values())
