"""What goes wrong in the guard's benchmark, and when: the faults of the kit, and some that nobody tuned a guard for."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from foreshock.testing import faults
from foreshock.testing.cells import draw, flip_bit
from foreshock.testing.faults import Fault, Injector
from guard_nets import Task

KIT, UNSEEN, CONTROL = "kit", "unseen", "control"
TIMES = {"early": (0.17, 0.27), "middle": (0.45, 0.60), "late": (0.78, 0.88)}  # shares of the steps
TWICE = "twice"  # in the middle and late


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of fault.

    Attributes:
        name: shown.
        group: `KIT`, a fault of `foreshock.testing.faults` as it comes, `UNSEEN`, or `CONTROL`, no fault at all.
        faults: what an injector does, from the step.
        loss: what becomes of the loss of that step before it is differentiated, or None.
        state: what becomes of the optimizer's state before that step, or None.
        sticky: the fault sits in the batch, which is as bad when it comes again.
        left_out: batches from the step on that are thrown away unseen.
    """

    name: str
    group: str
    faults: Callable[[int, Task], list[Fault]] | None = None
    loss: Callable[[Tensor], Tensor] | None = None
    state: Callable[[Task, torch.Generator], None] | None = None
    sticky: bool = False
    left_out: int = 0


def half_foreign(task: Task) -> Callable[[int], Tensor]:
    """Returns batches of which every second row is of the data that do not belong here."""

    def mixed(step: int) -> Any:
        batch = task.draw(10**6 + step).clone()
        batch[::2] = task.foreign(step)[::2]
        return batch

    return mixed


def flip_second_moment(task: Task, generator: torch.Generator) -> None:
    """Flips the top bit of the exponent of one second moment: the update of that weight stands still, or explodes."""
    moments = [state["exp_avg_sq"] for state in task.optimizer.state.values() if "exp_avg_sq" in state]
    for cell in draw(moments, 1, generator):
        flip_bit(cell, 30)


def flip_first_moment(task: Task, generator: torch.Generator) -> None:
    """Flips the top bit of the exponent of one first moment: the next update of that weight is 1e38 times too large."""
    moments = [state["exp_avg"] for state in task.optimizer.state.values() if "exp_avg" in state]
    for cell in draw(moments, 1, generator):
        flip_bit(cell, 30)


CASES: tuple[Case, ...] = (
    Case("random batch", KIT, lambda t, task: [faults.random_batch(t, vocabulary=task.vocabulary)]),
    Case("constant batch", KIT, lambda t, task: [faults.constant_batch(t)]),
    Case("gradient x 1000", KIT, lambda t, task: [faults.scaled_gradient(t)]),
    Case("NaN gradient", KIT, lambda t, task: [faults.nan_gradient(t)]),
    Case("lr x 60, 4 steps", KIT, lambda t, task: [faults.raised_lr(t)]),
    Case("weight bit flip", KIT, lambda t, task: [faults.bit_flip(t)]),
    Case("state reset", KIT, lambda t, task: [faults.state_reset(t)]),
    Case("wrong mixture", KIT, lambda t, task: [faults.wrong_mixture(t, task.foreign)]),
    Case("lr x 10, 4 steps", UNSEEN, lambda t, task: [faults.raised_lr(t, factor=10.0)]),
    Case("lr x 200, 4 steps", UNSEEN, lambda t, task: [faults.raised_lr(t, factor=200.0)]),
    Case("lr x 30, 30 steps", UNSEEN, lambda t, task: [faults.raised_lr(t, factor=30.0, steps=30)]),
    Case("gradient x 30", UNSEEN, lambda t, task: [faults.scaled_gradient(t, factor=30.0)]),
    Case("gradient x 1e8, 3 steps", UNSEEN, lambda t, task: [faults.scaled_gradient(t, factor=1e8, steps=3)]),
    Case("infinite gradient", UNSEEN, lambda t, task: [faults.nan_gradient(t, value=math.inf)]),
    Case("5 random batches", UNSEEN, lambda t, task: [faults.random_batch(t, vocabulary=task.vocabulary, steps=5)]),
    Case(
        "random batch, sticky", UNSEEN, lambda t, task: [faults.random_batch(t, vocabulary=task.vocabulary)],
        sticky=True,
    ),
    Case("NaN loss", UNSEEN, loss=lambda loss: loss * math.nan),
    Case("loss x 1000", UNSEEN, loss=lambda loss: loss * 1000.0),
    Case("v bit flip", UNSEEN, state=flip_second_moment),
    Case("m bit flip", UNSEEN, state=flip_first_moment),
    Case("any exponent bit flip", UNSEEN, lambda t, task: [faults.bit_flip(t, bit="exponent")]),
    Case("8 exponent bit flips", UNSEEN, lambda t, task: [faults.bit_flip(t, bit="exponent", count=8)]),
    Case("moments zeroed", UNSEEN, lambda t, task: [faults.state_reset(t, how="zero")]),
    Case("half-wrong mixture, 40", UNSEEN, lambda t, task: [faults.wrong_mixture(t, half_foreign(task), steps=40)]),
    Case(
        "random, then lr x 60", UNSEEN,
        lambda t, task: [faults.random_batch(t, vocabulary=task.vocabulary), faults.raised_lr(t + 8)],
    ),
    Case("20 batches left out", CONTROL, left_out=20),
)  # fmt: skip


def named(name: str) -> Case:
    """Returns the case of this name."""
    return next(case for case in CASES if case.name == name)


def strikes(case: Case, when: str, seed: int, steps: int) -> list[int]:
    """Returns the steps at which the fault strikes, drawn by the seed."""
    chance = random.Random(f"{case.name} {when} {seed}")
    spans = [TIMES["middle"], TIMES["late"]] if when == TWICE else [TIMES[when]]
    return [round(steps * chance.uniform(*span)) for span in spans]


class Trouble:
    """A case at work in a training; `None` for the case is a clean run.

    The loop calls `batches` once, and in each attempt `batch`, `loss`, `gradients`, `before`, `after`, in this order.
    """

    def __init__(self, case: Case | None, at: list[int], task: Task, seed: int) -> None:
        self.case, self.at, self.task = case, at, task
        made = [fault for step in at for fault in case.faults(step, task)] if case is not None and case.faults else []
        self.injector = Injector(made, task.model, task.optimizer, seed=seed)
        self._generator = torch.Generator().manual_seed(seed)
        self._struck: set[int] = set()

    def batches(self) -> Iterator[Any]:
        """Yields the data, without end."""
        number = 0
        while True:
            batch = self.task.draw(number)
            yield self.injector.batch(number, batch) if self.sticky else batch
            number += 1

    def leaves_out(self, step: int) -> bool:
        return self.case is not None and any(at <= step < at + self.case.left_out for at in self.at)

    @property
    def sticky(self) -> bool:
        return self.case is not None and self.case.sticky

    def batch(self, step: int, batch: Any) -> Any:
        return batch if self.sticky else self.injector.batch(step, batch)

    def loss(self, step: int, loss: Tensor) -> Tensor:
        return self.case.loss(loss) if self.case is not None and self.case.loss and step in self.at else loss

    def gradients(self, step: int) -> None:
        self.injector.gradients(step)

    def before(self, step: int) -> None:
        self.injector.before_step(step)
        if self.case is not None and self.case.state and step in self.at and step not in self._struck:
            self._struck.add(step)
            self.case.state(self.task, self._generator)

    def after(self, step: int) -> None:
        self.injector.after_step(step)
