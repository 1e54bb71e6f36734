"""Small trainings to which something happens, watched by a monitor with a history."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from foreshock.history import History
from foreshock.monitor import Monitor
from foreshock.run import Event

AT, STEPS = 70, 100
Batch = tuple[Tensor, Tensor]


class Net(nn.Module):
    """A classifier of points in ten dimensions; counts its steps in a buffer, which snapshots bring back."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Linear(10, 32), nn.BatchNorm1d(32), nn.ReLU(), nn.Dropout(dropout))
        self.head = nn.Linear(32, 4)
        self.register_buffer("clock", torch.zeros((), dtype=torch.long))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(x))  # type: ignore[no-any-return]


@dataclass
class World:
    """A training, and what happened to it.

    Attributes:
        model, optimizer, monitor, history: live.
        step_fn: one step of its loop.
        losses: of all its steps.
    """

    model: Net
    optimizer: torch.optim.Optimizer
    monitor: Monitor
    history: History
    step_fn: Callable[[Any], Tensor]
    losses: list[float] = field(default_factory=list)

    @property
    def event(self) -> Event:
        """The loudest event; of made-up bounds where the detectors saw none."""
        harmful = [each for each in self.monitor.events if each.kind in ("spike", "nonfinite", "divergence")]
        if harmful:
            return max(harmful, key=lambda each: each.severity)
        after = range(AT, len(self.losses))
        peak = max(after, key=lambda step: self.losses[step])
        return Event("spike", peak, peak, peak, peak, 1.0, 9.0, "loss")


def batch(step: int, *, noise: bool = False) -> Batch:
    """Returns the batch of a step, always the same."""
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(32, 10, generator=generator)
    y = (x[:, :2] > 0).long() @ torch.tensor([2, 1])
    return x, torch.randint(4, (32,), generator=generator) if noise else y


def train(
    fault: str = "", *, optimizer: str = "adamw", dropout: float = 0.0, path: Any = None, steps: int = STEPS
) -> World:
    """Trains with a fault at step `AT`: "labels", "gradient", "lr", "nan", "weight", or none."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(3)
        model = Net(dropout)
    kinds: dict[str, Callable[..., torch.optim.Optimizer]] = {
        "adamw": lambda params: torch.optim.AdamW(params, 5e-3),
        "sgd": lambda params: torch.optim.SGD(params, 0.05, momentum=0.9),
    }
    opt = kinds[optimizer](model.parameters())
    rate = float(opt.param_groups[0]["lr"])

    def step_fn(given: Batch) -> Tensor:
        at = int(model.clock) == AT
        if fault == "lr":
            opt.param_groups[0]["lr"] = rate * (100.0 if at else 1.0)
        x, y = given
        loss = F.cross_entropy(model(x), y)
        monitor.observe(loss, batch=given)
        opt.zero_grad()
        loss.backward()
        if fault == "gradient" and at:
            for param in model.parameters():
                assert param.grad is not None
                param.grad.mul_(3000.0)
        opt.step()
        model.clock += 1
        return loss

    monitor = Monitor(model, opt, path)
    with monitor, History(monitor) as history:
        world = World(model, opt, monitor, history, step_fn)
        for step in range(steps):
            x, y = batch(step, noise=fault == "labels" and step == AT)
            if fault == "nan" and step == AT:
                x = x.clone()
                x[0, 0] = torch.nan
            if fault == "weight" and step == AT:
                with torch.no_grad():
                    model.head.weight[0, 0] = 50.0
            world.losses.append(float(step_fn((x, y)).detach()))
    return world
