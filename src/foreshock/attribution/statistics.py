"""Batch normalisation with the statistics of a batch held, so that an example has a gradient of its own."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

__all__ = ["coupling", "held_statistics"]


def coupling(modules: Sequence[nn.Module]) -> list[_BatchNorm]:
    """Returns the normalisations that take their statistics from the batch as they are."""
    return [
        module
        for module in modules
        if isinstance(module, _BatchNorm) and (module.training or module.running_mean is None)
    ]


@contextmanager
def held_statistics(modules: Sequence[_BatchNorm], run: Callable[[], Any]) -> Iterator[None]:
    """Has batch normalisations use, inside, the statistics that they see in one run, as constants.

    Args:
        modules: the normalisations.
        run: computes the batch once.
    """
    seen: dict[_BatchNorm, tuple[Tensor, Tensor]] = {}

    def look(module: nn.Module, given: tuple[Any, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        values = given[0].detach()
        over = [0, *range(2, values.dim())]
        seen[module] = values.mean(dim=over), values.var(dim=over, unbiased=False)

    hooks = [module.register_forward_pre_hook(look) for module in modules]
    try:
        with torch.no_grad():
            run()
    finally:
        for hook in hooks:
            hook.remove()
    kept = [(module, module.training, dict(module._buffers)) for module in seen]
    try:
        for module, (mean, variance) in seen.items():
            module.training = False
            module._buffers["running_mean"], module._buffers["running_var"] = mean, variance
        yield
    finally:
        for module, training, buffers in kept:
            module.training = training
            module._buffers.update(buffers)
