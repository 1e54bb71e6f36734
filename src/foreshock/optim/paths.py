"""Which of the ways to make S3's update serves some tensors: compiled, in blocks, in whole lists, one by one."""

from __future__ import annotations

from operator import attrgetter

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError
from foreshock.optim import blocks, compiled, native, update
from foreshock.optim.blocks import Tensors
from foreshock.optim.settings import Settings

__all__ = ["take"]

_DEVICE, _DTYPE = attrgetter("device"), attrgetter("dtype")
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
    """Makes one step in place.

    Args:
        foreach: False takes one tensor at a time, in torch operations.
        fused: True asks for a compiled way, False for torch operations; by default what is fastest.

    Raises:
        UsageError: `fused` is True and there is no compiled way for these tensors.
    """
    if torch.compiler.is_compiling():  # which fuses by itself
        return update.update(params, grads, exp_avgs, roots, **settings)
    for lists in _alike(params, grads, exp_avgs, roots):
        plain = lists[0][0].is_cpu and set(map(type, lists[0])) <= {Tensor, nn.Parameter}
        if (fused or (fused is None and foreach is not False)) and _compiled(lists, settings, plain, bool(fused)):
            continue
        if foreach is False:
            for one in zip(*lists, strict=True):
                update.update(*([each] for each in one), **settings)
        elif plain:
            blocks.blocked(*lists, **settings)
        else:
            update.update(*lists, **settings)
    return None


def _compiled(lists: Lists, settings: Settings, plain: bool, asked: bool) -> bool:
    """Makes the step in a compiled way, and returns whether there is one."""
    by_loop = plain and native.usable(*lists, settings["p"])
    if not settings["beta"] and (by_loop or asked):
        torch._foreach_zero_(lists[2])  # m + (g - m), which the compiled ways take, rounds g by what it replaces
    if by_loop:
        native.update(*lists, **settings)
        return True
    device = lists[0][0].device.type
    if asked and device != "cpu" and compiled.usable(device):
        compiled.update(*lists, **settings)
        return True
    if asked:
        raise UsageError(
            f"fused=True: no compiled step for {lists[0][0].dtype} parameters on {device}"
            + (
                "; it is built when foreshock is installed where there is a C compiler"
                if plain and native.library() is None
                else "; it needs Triton there"
                if device == "cuda"
                else ", which float16 and mixtures with float64 do not have"
            )
            + ". Leave fused out to have the fastest there is"
        )
    return False


def _alike(params: Tensors, grads: Tensors, exp_avgs: Tensors, roots: Tensors) -> list[Lists]:
    """Returns tensors in lists of one device and one type."""
    kinds = list(zip(map(_DEVICE, params), map(_DTYPE, params), strict=True))
    if len(set(kinds)) <= 1:
        return [(list(params), list(grads), list(exp_avgs), list(roots))] if params else []
    found: dict[tuple[torch.device, torch.dtype], Lists] = {}
    for kind, *four in zip(kinds, params, grads, exp_avgs, roots, strict=True):
        for into, each in zip(found.setdefault(kind, ([], [], [], [])), four, strict=True):
            into.append(each)
    return list(found.values())
