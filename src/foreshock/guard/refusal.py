"""Whether an optimizer stands still at a step whose gradients were all dropped."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.stability.twins import advance

SHAPES = (((3, 2), (2,)), ((3, 2),))  # the second for optimizers of matrices only
KERNELS = ("fused", "foreach", "capturable")  # which variant runs; some refuse a CPU, and all must stand still
STEPS = 2


def skippable(optimizer: Optimizer) -> bool | None:
    """Returns whether `step()` without any gradient leaves parameters and state bit for bit as they are.

    Tried on a few numbers, by a fresh optimizer of the same class with the first group's settings: the optimizer
    itself, its parameters and the random streams are not touched. None: no such optimizer could be made or stepped.

    >>> skippable(torch.optim.AdamW([torch.nn.Parameter(torch.ones(2))]))
    True
    """
    for shapes in SHAPES:
        for plain in (False, True):
            try:
                return _stands_still(optimizer, shapes, plain)
            except Exception:  # somebody else's constructor or step, which may raise whatever it likes
                continue
    return None


def _stands_still(optimizer: Optimizer, shapes: tuple[tuple[int, ...], ...], plain: bool) -> bool:
    kind, group = type(optimizer), optimizer.param_groups[0]
    known = inspect.signature(kind).parameters
    taken = [name for name in group if name in known and name != "params" and not (plain and name in KERNELS)]
    settings: dict[str, Any] = {name: copy.deepcopy(group[name]) for name in taken}
    settings = {name: each.cpu() if isinstance(each, Tensor) else each for name, each in settings.items()}
    params = [torch.nn.Parameter(torch.linspace(-1.0, 2.0, 6)[: _size(shape)].reshape(shape)) for shape in shapes]
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        made = kind(params, **settings)
    for done in range(STEPS + 1):
        before, state = [param.detach().clone() for param in params], copy.deepcopy(made.state_dict())
        try:
            advance(made, [None] * len(params))
        except UsageError:  # it steps with gradients only, or not here at all
            advance(made, _gradients(params))
            return False
        still = all(torch.equal(param, old) for param, old in zip(params, before, strict=True))
        if not (still and _same(made.state_dict(), state)):
            return False
        if done < STEPS:
            advance(made, _gradients(params))
    return True


def _gradients(params: Sequence[Tensor]) -> list[Tensor]:
    return [torch.linspace(1.0, -0.5, param.numel()).reshape(param.shape) for param in params]


def _size(shape: tuple[int, ...]) -> int:
    return int(torch.Size(shape).numel())


def _same(one: Any, other: Any) -> bool:
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_same(value, other[name]) for name, value in one.items())
    if isinstance(one, (list, tuple)) and isinstance(other, (list, tuple)):
        return len(one) == len(other) and all(map(_same, one, other))
    return bool(one == other)
