"""Catches losses at `backward` and steps at `Optimizer.step`, whatever the script around them looks like."""

from __future__ import annotations

import os
import traceback
import weakref
from collections.abc import Callable, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_pre_hook

from foreshock.errors import ForeshockError
from foreshock.monitor import Monitor
from foreshock.script.names import name_parameters

if TYPE_CHECKING:
    from collections.abc import Iterator

__all__ = ["Watched", "Watcher"]

IDLE_STEPS = 1000  # optimizer steps of the process after which one that made none of them is let go
_UNSCALED = "_foreshock_unscaled"  # attribute of a loss that a GradScaler scaled: the loss before that


@dataclass(slots=True)
class Losses:
    """The scalars differentiated since the last step: their sum, detached, and how many they were."""

    total: Tensor | None = None
    count: int = 0

    def add(self, loss: Tensor) -> None:
        self.total = loss if self.total is None else self.total + loss
        self.count += 1

    def clear(self) -> None:
        self.total, self.count = None, 0


@dataclass(slots=True, eq=False)
class Watched:
    """One optimizer of the script.

    Attributes:
        path: its run directory.
        monitor: open until the script ends; None once it was closed.
        losses: what was differentiated since its last step and touched its gradients.
        last: steps that all optimizers together had made when it made its last one.
    """

    path: Path
    monitor: Monitor | None
    losses: Losses
    last: int = 0


class Watcher:
    """Watches every optimizer of this process from `install` to `close`; each gets a run directory of its own.

    The loss of a step is the sum of the scalars differentiated since the step before, which is what the gradients
    belong to: with the usual division by the number of micro-batches it is their mean. Scaling by a GradScaler is
    taken out. A scalar counts for an optimizer when its backward pass touched a gradient of that optimizer.

    Args:
        directory: run directory of the first optimizer; those after it append ".1", ".2", ... to its name.
        say: takes a remark for the user.
        warn: takes a warning for the user.
        settings: further arguments for each `Monitor`.
    """

    def __init__(
        self, directory: Path, say: Callable[[str], None], warn: Callable[[str], None], **settings: Any
    ) -> None:
        self.directory, self.say, self.warn, self.settings = directory, say, warn, settings
        self.runs: list[Watched] = []
        self._of: weakref.WeakKeyDictionary[Optimizer, Watched | None] = weakref.WeakKeyDictionary()
        self._recent = Losses()  # since any optimizer stepped: where a new optimizer begins
        self._stepped = False
        self._steps = 0
        self._process = os.getpid()
        self._undo: list[Callable[[], None]] = []

    def install(self) -> None:
        """Puts the hooks in place."""
        self._replace(torch.autograd, "backward", self._backward)
        self._replace(torch.amp.GradScaler, "scale", self._scale)
        self._undo.append(register_optimizer_step_pre_hook(self._before_step).remove)

    def close(self) -> None:
        """Takes the hooks away and closes the runs."""
        while self._undo:
            self._undo.pop()()
        for watched in self.runs:
            with self._harmless():
                self._finish(watched)

    def _replace(self, owner: Any, name: str, wrapper: Callable[[Any], Any]) -> None:
        original = getattr(owner, name)
        setattr(owner, name, wrapper(original))
        self._undo.append(lambda: setattr(owner, name, original))

    @contextmanager
    def _harmless(self) -> Iterator[None]:
        """Whatever fails inside is reported, with its traceback, and ends the watching; the script goes on."""
        try:
            yield
        except Exception as error:
            while self._undo:
                self._undo.pop()()
            lines = traceback.format_exc().rstrip() if not isinstance(error, ForeshockError) else str(error)
            self.warn(f"watching stopped, the script goes on: {lines}")

    def _backward(self, original: Callable[..., None]) -> Callable[..., None]:
        @wraps(original)
        def backward(tensors: Any, *args: Any, **kwargs: Any) -> None:
            marks: dict[Watched, list[Any]] = {}
            with self._harmless():
                marks = self._marks()
                self._look([tensors] if isinstance(tensors, Tensor) else list(tensors))
            original(tensors, *args, **kwargs)
            with self._harmless():
                self._caught([tensors] if isinstance(tensors, Tensor) else list(tensors), marks)

        return backward

    def _scale(self, original: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(original)
        def scale(scaler: Any, outputs: Any) -> Any:
            result = original(scaler, outputs)
            if isinstance(result, Tensor) and result is not outputs:
                setattr(result, _UNSCALED, outputs.detach())
            return result

        return scale

    def _marks(self) -> dict[Watched, list[Any]]:
        """Forgets losses whose gradients were cleared since, and returns what shows which gradients change."""
        marks: dict[Watched, list[Any]] = {}
        several = len(self.runs) > 1
        for optimizer, watched in self._of.items():
            if watched is None:
                continue
            parameters = [tensor for group in optimizer.param_groups for tensor in group["params"]]
            if watched.losses.count and all(tensor.grad is None for tensor in parameters):
                watched.losses.clear()
            if several:
                marks[watched] = [_mark(tensor) for tensor in parameters]
        return marks

    def _look(self, tensors: Sequence[Any]) -> None:
        """Shows the losses about to be differentiated to the probes that look on; whose they are is known later."""
        losses = [tensor for tensor in tensors if isinstance(tensor, Tensor) and tensor.numel() == 1]
        for watched in self.runs if os.getpid() == self._process else ():
            for loss in losses:
                if watched.monitor is not None and loss.grad_fn is not None:
                    watched.monitor.look(loss)

    def _caught(self, tensors: Sequence[Any], marks: dict[Watched, list[Any]]) -> None:
        scalars = [
            getattr(tensor, _UNSCALED, tensor).detach().reshape(())
            for tensor in tensors
            if isinstance(tensor, Tensor) and tensor.numel() == 1
        ]
        if not scalars or os.getpid() != self._process:
            return
        loss = torch.stack(scalars).sum() if len(scalars) > 1 else scalars[0]
        if self._stepped:
            self._recent.clear()
            self._stepped = False
        self._recent.add(loss)
        for optimizer, watched in self._of.items():
            if watched is None:
                continue
            if marks:
                now = (_mark(tensor) for group in optimizer.param_groups for tensor in group["params"])
                if all(mark == before for mark, before in zip(now, marks[watched], strict=False)):
                    continue
            watched.losses.add(loss)

    def _before_step(self, optimizer: Optimizer, args: Any, kwargs: Any) -> None:
        if os.getpid() != self._process:
            return
        with self._harmless():
            if optimizer not in self._of:
                self._of[optimizer] = self._begin(optimizer, args, kwargs)
            watched = self._of[optimizer]
            self._stepped = True
            self._steps += 1
            if watched is None or watched.monitor is None:
                return
            watched.last = self._steps
            if watched.losses.total is not None:
                for _ in range(watched.losses.count):  # the mean of all of these is the sum, and their number is kept
                    watched.monitor.observe(watched.losses.total)
            watched.losses.clear()

    def _begin(self, optimizer: Optimizer, args: Any, kwargs: Any) -> Watched | None:
        """Returns the optimizer with an open monitor, or None, said once, where it cannot be watched."""
        name = type(optimizer).__name__
        if kwargs.get("closure") is not None or any(argument is not None for argument in args[1:]):
            self.warn(f"{name} is not watched: its step() is given a closure, so its gradients do not exist yet")
            return None
        self._let_go()
        count = len(self.runs)
        path = self.directory if count == 0 else self.directory.with_name(f"{self.directory.name}.{count}")
        try:
            monitor = Monitor(name_parameters(optimizer), optimizer, run=path, **self.settings)
            monitor.__enter__()
        except ForeshockError as error:
            self.warn(f"{name} is not watched: {error}")
            return None
        self.say(f"watching {name}, run in {path}")
        result = Watched(path, monitor, replace(self._recent))
        self.runs.append(result)
        return result

    def _let_go(self) -> None:
        """Closes the runs of idle optimizers, so that models a script is done with are freed as without foreshock."""
        for optimizer, watched in list(self._of.items()):
            if watched is not None and self._steps - watched.last > IDLE_STEPS:
                self._finish(watched)
                del self._of[optimizer]

    def _finish(self, watched: Watched) -> None:
        if watched.monitor is not None:
            watched.monitor.__exit__(None, None, None)
            watched.monitor = None


def _mark(tensor: Tensor) -> tuple[int, int] | None:
    """Returns what changes when a gradient is replaced or added to in place."""
    gradient = tensor.grad
    return None if gradient is None else (id(gradient), gradient._version)
