"""A guard in loops that call `optimizer.step()` themselves: the same decisions, carried out in hooks."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from types import TracebackType
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from foreshock.errors import UsageError
from foreshock.guard.carry import Carried, changed, settled, share
from foreshock.guard.refusal import skippable
from foreshock.guard.scaling import Scaling
from foreshock.guard.snapshots import Snapshots
from foreshock.guard.update import Change, first_after, learning_rate
from foreshock.run.action import Action
from foreshock.run.event import Event

if TYPE_CHECKING:
    from foreshock.guard.guard import Guard


class Hooked:
    """Judges each call of an optimizer's step, see `Guard.attach`; a context manager, or `remove()`.

    Args:
        guard: that decides.

    Raises:
        UsageError: the optimizer moves although its gradients are hidden.
    """

    def __init__(self, guard: Guard) -> None:
        self._guard, optimizer = guard, guard.optimizer
        can = skippable(optimizer)
        if can is False:
            raise UsageError(
                f"guard.attach(): {type(optimizer).__name__} moves parameters or its state at a step whose gradients "
                "were all dropped, so a step that others call cannot be refused. Call guard.step() in place of "
                "optimizer.step(): a refused step is not called at all then. "
                "foreshock.testing.check_optimizer(...) says what the optimizer does"
            )
        self._certain = can is True
        self._undoing: Snapshots | None = None  # for an optimizer of which it is not known
        self._stack = ExitStack()  # closed when the step is over
        self._change: Change | None = None
        self._hidden: list[tuple[Tensor, Tensor]] = []
        self._judged: tuple[Action, tuple[Event, ...], bool] | None = None
        # behind the monitor's before the step and before it after the step: it sees what the guard has made of a step
        self._handles = [
            optimizer.register_step_pre_hook(self._before),
            first_after(optimizer, self._between),
            optimizer.register_step_post_hook(self._after),
        ]

    def __enter__(self) -> Guard:
        return self._guard

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.remove()

    def remove(self) -> None:
        """Lets the optimizer alone from now on."""
        self._open_again()
        for handle in self._handles:
            handle.remove()
        if self._guard.hooked is self:
            self._guard.hooked = None

    def _before(self, optimizer: Optimizer, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        self._guard._must_go_on("a step of an attached guard")
        self._open_again()
        if args[1:] and callable(args[1]):
            return (args[0], self._judging(args[1]), *args[2:]), kwargs
        if callable(kwargs.get("closure")):
            return args, {**kwargs, "closure": self._judging(kwargs["closure"])}
        self._judge()
        return None

    def _judging(self, closure: Callable[[], Any]) -> Callable[[], Any]:
        """Returns the closure, with the step judged as soon as it has made the gradients."""

        def judged() -> Any:
            value = closure()
            if self._judged is None:
                self._guard.monitor.attempt.prepared = False  # that was before there were gradients
                self._judge()
            elif self._hidden:
                self._hide()
            return value

        return judged

    @torch.no_grad()
    def _judge(self) -> None:
        guard, optimizer = self._guard, self._guard.optimizer
        step = guard.monitor.step
        action, events, overflow = guard._judged(step, Scaling(optimizer))
        action = settled(guard, action, events)
        self._judged = action, events, overflow
        if action.takes_step:
            self._stack.enter_context(learning_rate(optimizer, share(guard, action)))
            self._change = changed(guard, action)
            return
        guard.monitor.attempt.refused = True
        if not self._certain:
            self._undoing = Snapshots(keep=1)
            self._undoing.attach(None, optimizer)
            self._undoing.take(0)
        self._hide()

    def _hide(self) -> None:
        """Takes the gradients away from the optimizer until its step is over."""
        params = [param for group in self._guard.optimizer.param_groups for param in group["params"]]
        self._hidden = [(param, param.grad) for param in params if param.grad is not None]
        for param, _ in self._hidden:
            param.grad = None

    def _between(self, *_: Any) -> None:
        """Has the first word after the step."""
        with self._guard._mishaps.said("changing a step", "; it stays as it was taken"):
            if self._change is not None:
                self._change()
            if self._undoing is not None:
                self._undoing.restore(0)

    def _after(self, *_: Any) -> None:
        """Has the last word after the step."""
        judged, guard = self._judged, self._guard
        self._open_again()
        if judged is None:
            return
        action, events, overflow = judged
        moved = action.takes_step and not overflow
        guard._follow(guard.monitor.step - 1, Carried(action, moved), events, overflow)

    def _open_again(self) -> None:
        """Puts back what was changed for one step; also of one that has ended in an exception."""
        self._stack.close()
        for param, grad in self._hidden:
            param.grad = grad if param.grad is None else param.grad
        self._guard.monitor.attempt.refused = False
        self._change = self._undoing = self._judged = None
        self._hidden = []
