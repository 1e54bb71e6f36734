"""What a head reads, taken in passing: a hook that looks at its input and touches nothing."""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from foreshock.errors import UsageError

if TYPE_CHECKING:
    from foreshock.heads.statistics import HeadStatistics

_HELD = 64  # inputs that wait for their labels


class Collector:
    """Takes the inputs of a head while it is open; a call with the labels adds them to the statistics.

    Args:
        statistics: that are added to.
        head: the layer whose first input is read.
    """

    def __init__(self, statistics: HeadStatistics, head: nn.Module) -> None:
        self._statistics, self._head = statistics, head
        self._waiting: deque[Tensor] = deque(maxlen=_HELD)
        self._hook: Any = None

    def __enter__(self) -> Collector:
        self._hook = self._head.register_forward_pre_hook(self._seen, with_kwargs=True)
        return self

    def __exit__(self, *_: object) -> None:
        self._hook.remove()
        self._waiting.clear()

    def __call__(self, labels: Tensor, weights: Tensor | None = None, *, ignore_index: int = -100) -> None:
        """Adds the features since the last call.

        Args:
            labels: (...,) of the model's last forward pass, or of all its passes since the last call together.
            weights, ignore_index: as in `HeadStatistics.update`.

        Raises:
            UsageError: the head was not called, or for another number of examples.
        """
        waiting = [each.flatten(0, -2) for each in self._waiting]
        self._waiting.clear()
        if not waiting:
            raise UsageError("the head has not been called since the last labels: run the model first, uncompiled")
        if sum(map(len, waiting)) == labels.numel():
            features = torch.cat(waiting)
        elif len(waiting[-1]) == labels.numel():  # earlier passes were for something else
            features = waiting[-1]
        else:
            raise UsageError(
                f"{labels.numel()} labels, but the head was called for {', '.join(str(len(each)) for each in waiting)} "
                "examples: give one label for each of its inputs, ignore_index where there is none"
            )
        flat = None if weights is None else weights.flatten()
        self._statistics.update(features, labels.flatten(), flat, ignore_index=ignore_index)

    def _seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> None:
        given = args[0] if args else next(iter(kwargs.values()), None)
        if isinstance(given, Tensor):
            self._waiting.append((given.movedim(1, -1) if _pointwise(module) else given).detach().clone())


def head_of(model: nn.Module, head: nn.Module | str | None) -> nn.Module:
    """Returns a model's head: the one given, by name or itself, its output embeddings, or its last linear layer.

    Raises:
        UsageError: no module of that name, or none that looks like a head.
    """
    if isinstance(head, nn.Module):
        return head
    if isinstance(head, str):
        found: nn.Module | None = dict(model.named_modules()).get(head)
        if found is None:
            raise UsageError(f"the model has no module {head!r}; its last ones are {_last(model)}")
        return found
    output = getattr(model, "get_output_embeddings", None)
    made = output() if callable(output) else None
    if isinstance(made, nn.Module):
        return made
    layers = [each for each in model.modules() if isinstance(each, nn.Linear) or _pointwise(each)]
    if not layers:
        raise UsageError(f"no linear layer in {type(model).__name__}: give head, the layer that makes the logits")
    return layers[-1]


def _pointwise(module: nn.Module) -> bool:
    """Returns whether a module is a convolution of size 1: a linear layer at every place."""
    return isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d) and set(module.kernel_size) == {1}


def _last(model: nn.Module) -> str:
    return ", ".join(repr(name) for name, _ in list(model.named_modules())[-3:])
