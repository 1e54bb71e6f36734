"""A training with something planted in it, as a user's loop would run it; it can be put back and run again."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.optim import SGD, Adagrad, Adam, AdamW, NAdam, Optimizer, RMSprop
from torch.optim.lr_scheduler import LambdaLR

from explain_nets import NETS, Batch
from explain_plants import Plant

BATCH = 32
WARM_UP = 20
# Learning rates of the optimizers, by network where they are not the same for all; found by trying.
RATES = {
    "sgd": 0.1, "sgd/coder": 0.05, "sgd/gpt": 0.2, "sgd/lstm": 0.5, "momentum": 0.03, "momentum/coder": 0.005,
    "momentum/lstm": 0.1, "adam": 3e-3, "adamw": 3e-3, "nadam": 2e-3, "rmsprop": 1e-3, "adagrad": 0.02,
}  # fmt: skip
BUILD: dict[str, Callable[[Iterable[Tensor], float], Optimizer]] = {
    "sgd": lambda params, lr: SGD(params, lr),
    "momentum": lambda params, lr: SGD(params, lr, momentum=0.9),
    "adam": lambda params, lr: Adam(params, lr),
    "adamw": lambda params, lr: AdamW(params, lr, betas=(0.9, 0.95), weight_decay=0.1),
    "nadam": lambda params, lr: NAdam(params, lr),
    "rmsprop": lambda params, lr: RMSprop(params, lr),
    "adagrad": lambda params, lr: Adagrad(params, lr),
}


class Training:
    """A network, an optimizer, a seed, and a plant that strikes at a step.

    The clock is the scheduler's, so that a training that is put back meets its plant again.

    Attributes:
        planted: step -> rows of the batch that are bad.
        made: network, optimizer and seed.
    """

    def __init__(self, net: str, optimizer: str, seed: int, plant: Plant, at: int) -> None:
        self.seed, self.plant, self.at, self.made = seed, plant, at, (net, optimizer, seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.task = NETS[net]()
        self.model = self.task.model
        lr = RATES.get(f"{optimizer}/{net}", RATES[optimizer])
        groups: Any = list(self.model.parameters())
        if plant.group is not None:
            head = list(self.model.head.parameters())
            groups = [{"params": [p for p in groups if all(p is not q for q in head)]}, {"params": head}]
        self.optimizer = BUILD[optimizer](groups, lr)
        self.scheduler = LambdaLR(
            self.optimizer, [partial(self.rate, group=i) for i in range(len(self.optimizer.param_groups))]
        )
        self.planted: dict[int, list[int]] = {}

    @property
    def clock(self) -> int:
        """Steps that were taken."""
        return int(self.scheduler.last_epoch)

    def struck(self, step: int) -> bool:
        return self.at <= step < self.at + self.plant.steps

    def rate(self, step: int, group: int = 0) -> float:
        """Returns the factor of the learning rate: a short warm-up, and what is planted."""
        plant = self.plant
        if plant.warm:
            return plant.rate if step >= self.at else (step + 1) / self.at
        usual = min((step + 1) / WARM_UP, 1.0)
        if not self.struck(step) or plant.group not in (None, group):
            return usual
        return usual * plant.rate ** min(1.0, (step - self.at + 1) / max(plant.ramp, 1))

    def add_group(self, params: list[Any]) -> None:
        """Gives the optimizer a new parameter group that follows the schedule."""
        lr = self.scheduler.base_lrs[0]
        self.optimizer.add_param_group({"params": params, "lr": lr, "initial_lr": lr})
        self.scheduler.base_lrs.append(lr)
        self.scheduler.lr_lambdas.append(self.rate)

    def draw(self, step: int) -> list[Batch]:
        """Returns the micro-batches of a step, as the loader gives them."""
        inputs, targets = self.task.data
        struck = self.struck(step)
        size = max(2, int(BATCH * (self.plant.size if struck else 1.0)))
        found = []
        for micro in range(self.plant.micro if struck else 1):
            source = torch.Generator().manual_seed(self.seed * 1_000_003 + step * 101 + micro)
            rows = torch.randint(len(inputs), (size,), generator=source)
            if self.plant.late and not struck:
                rows = self.task.familiar[rows % len(self.task.familiar)]
            batch = inputs[rows], targets[rows]
            found.append(self.plant.batch(self, step, batch) if self.plant.batch and struck else batch)
        return found

    def advance(
        self, batches: list[Batch] | Batch, observe: Callable[..., object] | None = None
    ) -> Tensor | float:
        """Takes one step of the loop on these micro-batches, or on the one there is; returns the loss it reports.

        Args:
            batches: as `draw` gives them.
            observe: is shown each loss before its backward pass, with its batch.
        """
        step, plant = self.clock, self.plant
        struck, parts = self.struck(step), batches if isinstance(batches, list) else [batches]
        if plant.once is not None and step == self.at:
            plant.once(self, step)
        self.optimizer.zero_grad()
        told = []
        for batch in parts:
            loss = plant.wrapped(self, batch, step) if plant.wrapped and struck else self.task.loss(batch)
            told.append(self.reported(step, loss))
            if observe is not None:
                observe(told[-1], batch=batch)
            (loss * plant.scale if struck and plant.scale != 1.0 else loss).backward()  # type: ignore[no-untyped-call]
        if plant.gradients is not None and struck:
            plant.gradients(self, step)
        if plant.state is not None and struck:
            plant.state(self, step)
        self.optimizer.step()
        self.scheduler.step()
        return torch.stack([each.detach() for each in told]).mean() if isinstance(told[0], Tensor) else told[0]

    def reported(self, step: int, loss: Tensor) -> Tensor | float:
        """Returns what the loop reports as its loss."""
        if self.plant.reported is None:
            return loss
        value = float(loss.detach())
        return self.plant.reported(self, step, value) if self.plant.steps < 0 or self.struck(step) else value

    def disturb(self, step: int) -> None:
        """Does what the loop does not know of, before a step."""
        if self.plant.outside is not None and step == self.at:
            self.plant.outside(self, step)
