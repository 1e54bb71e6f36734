"""Small trainings that a history is kept of, and going through their windows by hand."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from foreshock import Event, Monitor, Snapshots
from foreshock.history import History, Window


def sgd(net: nn.Module) -> Any:
    return torch.optim.SGD(net.parameters(), 0.02, momentum=0.9)


def adamw(net: nn.Module) -> Any:
    return torch.optim.AdamW(net.parameters(), 3e-3)


def two_groups(net: nn.Module) -> Any:
    *first, last = net.parameters()
    return torch.optim.RMSprop([{"params": first}, {"params": [last], "lr": 1e-4}], 1e-3)


def cosine(optimizer: Any) -> Any:
    return torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)


@dataclass
class Training:
    """One small training with everything in it that a replay has to put back.

    Attributes:
        make: makes the optimizer.
        seed: of start and batches.
        micro: micro-batches of a step.
        noise: whether a step draws from Python's and numpy's streams as well.
    """

    make: Callable[[nn.Module], Any] = adamw
    seed: int = 0
    micro: int = 1
    noise: bool = False
    losses: list[float] = field(default_factory=list)

    def __post_init__(self) -> None:
        torch.manual_seed(self.seed)
        random.seed(self.seed)
        np.random.seed(self.seed)
        self.model = nn.Sequential(
            nn.Linear(6, 12), nn.BatchNorm1d(12), nn.Tanh(), nn.Dropout(0.2), nn.Linear(12, 1)
        )  # fmt: skip
        self.optimizer = self.make(self.model)
        self.scheduler = cosine(self.optimizer)

    def batch(self, step: int) -> Any:
        draw = torch.Generator().manual_seed(self.seed * 1009 + step)
        parts = []
        for _ in range(self.micro):
            x = torch.randn(16, 6, generator=draw)
            parts.append({"x": x, "y": x.sum(1, keepdim=True)})
        return parts if self.micro > 1 else parts[0]

    def loss(self, part: dict[str, Tensor]) -> Tensor:
        shift = random.gauss(0.0, 0.01) + float(np.random.normal(0.0, 0.01)) if self.noise else 0.0
        return (self.model(part["x"]) - part["y"] + shift).square().mean()

    def step(self, batch: Any, observe: Callable[..., object] = lambda loss, batch: None) -> float:
        """One step of the loop; also what goes through a window again."""
        self.optimizer.zero_grad()
        parts = batch if self.micro > 1 else [batch]
        seen = []
        for part in parts:
            loss = self.loss(part)
            observe(loss, batch=part)
            (loss / len(parts)).backward()
            seen.append(loss.item())
        self.optimizer.step()
        self.scheduler.step()
        return sum(seen) / len(seen)

    def run(self, steps: range, observe: Callable[..., object] = lambda loss, batch: None) -> None:
        for step in steps:
            self.losses.append(self.step(self.batch(step), observe))

    def watched(self, steps: range, stack: ExitStack, **options: Any) -> History:
        """Runs under a monitor with a history, both of which stay open."""
        monitor = stack.enter_context(Monitor(self.model, self.optimizer, probes=()))  # quick
        ring = options.pop("snapshots", None) or Snapshots(every=20)  # not what the clock would make of it
        history = stack.enter_context(History(monitor, scheduler=self.scheduler, snapshots=ring, **options))
        self.run(steps, monitor.observe)
        return history

    def state(self) -> list[Any]:
        """All that must be the same in two runs, bit for bit."""
        moments = [value for state in self.optimizer.state.values() for value in state.values()]
        tensors = [*self.model.state_dict().values(), *(value for value in moments if isinstance(value, Tensor))]
        streams = [torch.get_rng_state().tolist(), random.getstate(), str(np.random.get_state())]
        return [[tensor.tolist() for tensor in tensors], streams, self.scheduler.state_dict()]


def spike(onset: int, peak: int | None = None, *, kind: str = "spike", severity: float = 9.0, **more: Any) -> Event:
    at = onset if peak is None else peak
    return Event(kind, onset, onset, at, more.get("end"), 1.0, severity, more.get("signal", "loss"))


def again(window: Window, step_fn: Callable[[Any], float], candidate: int = 0) -> Iterator[tuple[int, float, float]]:
    """Goes through a window and yields step, loss and the loss that was recorded; checkpoints must be met."""
    window.restore()
    for step in window.steps:
        if step in window.checkpoints:
            assert window.same(step), step
        states = window.rng(step)
        window.set_rng(states[min(candidate, len(states) - 1)])
        if window.taken(step):
            yield step, step_fn(window.batch(step)), window.loss(step)


def exact(window: Window, step_fn: Callable[[Any], float], candidate: int = 0) -> int:
    """Goes through a window, in which every loss must be the one that was recorded; returns how many there were."""
    found = list(again(window, step_fn, candidate))
    assert [loss for _, loss, _ in found] == [recorded for _, _, recorded in found]
    return len(found)
