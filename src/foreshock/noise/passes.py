"""One step's backward passes, watched: the gradient of each before it is added up, and the sum once it is whole.

A hook on a parameter sees the gradient of one backward pass before it is accumulated, and before
`DistributedDataParallel` averages it over ranks: a small batch's. When the pass has ended, `.grad` holds the sum so
far, averaged where it is to be, not yet unscaled or clipped: the big batch's. Nothing is communicated.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Variable


@dataclass(slots=True)
class Pass:
    """A backward pass.

    Attributes:
        weight: what backward multiplied the loss with, (); None where that is not known.
        squares: |g|^2 of the parameters whose gradients have arrived, by name.
        whole: |.grad|^2 of them when it had ended, where that was asked for.
        runs: how many passes there were from this loss.
    """

    weight: Tensor | None = None
    squares: dict[str, Tensor] = field(default_factory=dict)
    whole: Tensor | None = None
    runs: int = 0


class Passes:
    """Watches the backward passes of the losses it is shown, until it is closed.

    Args:
        params: the parameters by name, plain tensors.
        weights: numbers shaped like a parameter, by its name, by which its squared entries count.
        began: told before each pass which loss it is of.
        arrived: told of each gradient, by name.
        averaged: whether `.grad` is averaged over ranks when a pass ends, which is after other callbacks.
    """

    def __init__(
        self,
        params: Mapping[str, Tensor],
        *,
        weights: Mapping[str, Tensor] | None = None,
        began: Callable[[int], None] | None = None,
        arrived: Callable[[str, Tensor], None] | None = None,
        averaged: bool = False,
    ) -> None:
        self.params, self.weights, self.averaged = dict(params), weights or {}, averaged
        self._began, self._arrived = began, arrived
        self.found: dict[int, Pass] = {}
        self.errors: list[Exception] = []
        self.mixed = False  # several losses were differentiated in one pass
        self._current: int | None = None
        self._hooks: list[Any] = []
        self._wants_whole: set[int] = set()
        held = [param.grad for param in self.params.values() if param.grad is not None]
        self.before = square_of(held) if held else None  # |.grad|^2 that was there already
        own = weakref.ref(self)
        for name, param in self.params.items():
            self._hooks.append(param.register_hook(_Arrival(own, name)))  # type: ignore[no-untyped-call]

    def watch(self, loss: Tensor, place: int, *, whole: bool) -> None:
        """Waits for the backward pass of a loss.

        Args:
            loss: with its graph.
            place: which of the step's losses it is.
            whole: whether `.grad` is to be measured at its end.
        """
        if loss.grad_fn is None:
            return
        self.found[place] = Pass()
        if whole:
            self._wants_whole.add(place)
        own = weakref.ref(self)

        def begins(given: tuple[Tensor, ...]) -> None:
            passes = own()
            if passes is not None and passes._hooks and not torch.is_grad_enabled():
                passes._begin(place, given[0])

        self._hooks.append(loss.grad_fn.register_prehook(begins))

    def close(self) -> None:
        """Takes all hooks away."""
        for hook in self._hooks:
            hook.remove()
        self._hooks, self._current = [], None

    def _begin(self, place: int, weight: Tensor | None) -> None:
        self.mixed |= self._current is not None
        runs = self.found[place].runs
        self.found[place] = Pass(None if weight is None else weight.detach(), runs=runs + 1)
        self._current = place
        if self._began is not None:
            self._began(place)
        own = weakref.ref(self)
        again = self.averaged

        def ended() -> None:
            nonlocal again
            if again:  # the averaging ends in a callback that was queued after this one
                again = False
                Variable._execution_engine.queue_callback(ended)
                return
            passes = own()
            if passes is not None:
                passes._end(place)

        Variable._execution_engine.queue_callback(ended)

    def _end(self, place: int) -> None:
        self._current = None
        if place in self._wants_whole and self._hooks:
            names = [name for name, param in self.params.items() if param.grad is not None]
            grads = [self.params[name].grad for name in names]
            with torch.no_grad():
                self.found[place].whole = square_of(
                    [grad for grad in grads if grad is not None], [self.weights.get(name) for name in names]
                )

    def _take(self, name: str, grad: Tensor) -> None:
        if self._current is None or torch.is_grad_enabled():
            return
        try:
            squares = self.found[self._current].squares
            if self.weights or grad.is_sparse:
                squares[name] = square_of([grad], [self.weights.get(name)])
            else:
                squares[name] = torch.linalg.vector_norm(grad, dtype=_kind(grad)).square_()
            if self._arrived is not None:
                self._arrived(name, grad)
        except Exception as error:  # inside a backward pass that belongs to the loop
            self.errors.append(error)


class _Arrival:
    """The hook on a parameter."""

    def __init__(self, owner: Callable[[], Passes | None], name: str) -> None:
        self._owner, self._name = owner, name

    def __call__(self, grad: Tensor) -> None:
        owner = self._owner()
        if owner is not None:
            owner._take(self._name, grad.detach())


def square_of(grads: Sequence[Tensor], weights: Sequence[Tensor | None] | None = None) -> Tensor:
    """Returns the sum of the squares of all entries, (), float32 or wider, each counted by its weight."""
    if not grads:
        return torch.zeros(())
    values = [grad.coalesce().values() if grad.is_sparse else grad for grad in grads]
    if weights is not None and any(weight is not None for weight in weights):
        sums = [
            (value.float().square() if weight is None else _weighed(grad, value, weight)).sum()
            for grad, value, weight in zip(grads, values, weights, strict=True)
        ]
        return torch.stack([each.to(sums[0].device) for each in sums]).sum()
    norms: Sequence[Tensor] = torch._foreach_norm(values, 2, dtype=_kind(values[0]))
    return torch.stack([norm.to(norms[0].device) for norm in norms]).square().sum()


def _kind(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32


def _weighed(grad: Tensor, value: Tensor, weight: Tensor) -> Tensor:
    if grad.is_sparse:
        weight = weight[tuple(grad.coalesce().indices())]
    return value.float().square() * weight.to(value.device)
