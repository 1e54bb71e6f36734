"""Keeps what one optimizer step started from and where it led, so that it can be attributed afterwards."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.attribution.naming import modules_and_names
from foreshock.attribution.split import Source, StepSplit, dense, split_step
from foreshock.errors import UsageError

__all__ = ["Step", "capture"]

Kept = TypeVar("Kept")


class Step:
    """A step that `capture` keeps: copies, independent of what the training does next.

    Attributes:
        params: the live parameters, of all groups.
        names: theirs.
    """

    def __init__(self, optimizer: Optimizer, names: nn.Module | Sequence[str] | None) -> None:
        self.params: list[Tensor] = [param for group in optimizer.param_groups for param in group["params"]]
        self.names = tuple(modules_and_names(names, self.params, ())[1])
        self._optimizer = optimizer
        self._source: Source | None = None
        self._before: list[Tensor] | None = None
        self._after: list[Tensor] | None = None
        self._grads: list[Tensor | None] = []
        self._depth = 0

    @property
    def taken(self) -> bool:
        """Whether a step was taken."""
        return self._after is not None

    @property
    def before(self) -> list[Tensor]:
        """The parameters' values before the step."""
        return self._kept(self._before)

    @property
    def after(self) -> list[Tensor]:
        """The parameters' values after the step."""
        return self._kept(self._after)

    @property
    def grads(self) -> list[Tensor | None]:
        """The gradients as the optimizer consumed them: clipped, and without the scale of a GradScaler."""
        return self._kept(self._grads)

    @property
    def source(self) -> Source:
        """The optimizer's settings and state before the step."""
        self._kept(self._before)
        assert self._source is not None
        return self._source

    @property
    def split(self) -> StepSplit:
        """How the step was made of gradient, momentum and decay."""
        return split_step(self.source, self.before, self.after, self.grads)

    def of(self, params: Sequence[Tensor]) -> tuple[Source, list[Tensor | None]]:
        """Returns the source and the gradients for some parameters, in their order."""
        place = {id(param): i for i, param in enumerate(self.params)}
        at = [place.get(id(param)) for param in params]
        if all(i is None for i in at):
            raise UsageError("attribute(optimizer=...): the step that was kept is of other parameters")
        source, grads = self.source, self.grads
        return Source(
            source.kind,
            tuple(None if i is None else source.groups[i] for i in at),
            tuple({} if i is None else source.states[i] for i in at),
            source.taken,
        ), [None if i is None else grads[i] for i in at]

    def begin(self, late: bool) -> None:
        """Keeps the state before a step; its gradients come later where a closure computes them."""
        self._depth += 1  # a step that calls its parent's has hooks on both
        if self.taken or self._depth > 1:
            return
        groups = {id(p): _copied(g) for g in self._optimizer.param_groups for p in g["params"]}
        states = [_copied(self._optimizer.state.get(param) or {}) for param in self.params]
        self._source = Source(
            type(self._optimizer), tuple(groups[id(param)] for param in self.params), tuple(states), False
        )
        self._before = [param.detach().clone() for param in self.params]
        if not late:
            self._grads = self._consumed()

    def end(self, late: bool) -> None:
        """Keeps the values after the step."""
        self._depth -= 1
        if self.taken or self._before is None or self._depth:
            return
        if late:
            self._grads = self._consumed()
        self._after = [param.detach().clone() for param in self.params]

    def _consumed(self) -> list[Tensor | None]:
        scale = getattr(self._optimizer, "grad_scale", None)
        found = [None if param.grad is None else dense(param.grad).clone() for param in self.params]
        if isinstance(scale, Tensor):
            found = [None if grad is None else grad / scale.to(grad) for grad in found]
        return found

    def _kept(self, value: Kept | None) -> Kept:
        if value is None or not self.taken:
            raise UsageError(
                f"attribution.capture: no step of the {type(self._optimizer).__name__} was taken in the block"
            )
        return value


@contextmanager
def capture(optimizer: Any, names: nn.Module | Sequence[str] | None = None) -> Iterator[Step]:
    """Keeps the first step that an optimizer takes in the block; the training does not notice.

    Args:
        optimizer: a torch optimizer, or a wrapper that holds one as `.optimizer`.
        names: the model, or names for the optimizer's parameters in the order of its groups.

    Raises:
        UsageError: it is no optimizer.

    >>> weight = torch.ones(2, requires_grad=True)
    >>> optimizer = torch.optim.SGD([weight], lr=0.5)
    >>> (weight.square() / 2).sum().backward()
    >>> with capture(optimizer, ["w"]) as step:
    ...     optimizer.step()
    >>> step.before[0].tolist(), step.after[0].tolist()
    ([1.0, 1.0], [0.5, 0.5])
    """
    inner = optimizer
    while not isinstance(inner, Optimizer) and hasattr(inner, "optimizer"):
        inner = inner.optimizer
    if not isinstance(inner, Optimizer):
        raise UsageError(f"attribution.capture: a torch optimizer is needed, got {type(optimizer).__name__}")
    step = Step(inner, names)

    def begin(_: Optimizer, args: Any, kwargs: Mapping[str, Any]) -> None:
        with torch.no_grad():
            step.begin(_has_closure(args, kwargs))

    def end(_: Optimizer, args: Any, kwargs: Mapping[str, Any]) -> None:
        with torch.no_grad():
            step.end(_has_closure(args, kwargs))

    handles = [inner.register_step_pre_hook(begin), inner.register_step_post_hook(end)]
    try:
        yield step
    finally:
        for handle in handles:
            handle.remove()


def _has_closure(args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    given: list[Callable[..., Any] | None] = [*args[1:], kwargs.get("closure")]
    return any(callable(each) for each in given)


def _copied(values: Mapping[Any, Any]) -> dict[Any, Any]:
    return {
        key: value.detach().clone() if isinstance(value, Tensor) else value
        for key, value in values.items()
        if key != "params"
    }
