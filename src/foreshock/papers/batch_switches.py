"""What a switch of the batch does to chi and to the loss: moments kept, rescaled by the predicted ratio, or reset."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import nn
from torch.optim import Optimizer

from foreshock.batch_size.moments import ratio
from foreshock.batch_size.switch import switch
from foreshock.curvature import Edge, edge
from foreshock.detect.divergence import Divergence
from foreshock.detect.drift import Drift
from foreshock.detect.scan import scan
from foreshock.detect.spike import Spike
from foreshock.monitor import Monitor
from foreshock.papers.batch_tasks import Task, loss_of
from foreshock.papers.batch_training import measured_noise, optimizer_of
from foreshock.probes import GradientNorm
from foreshock.run import Run
from foreshock.run.event import Event

__all__ = ["AFTER", "MOMENTS", "After", "after_switches", "false_spikes"]

MOMENTS = ("keep", "rescale", "reset")
AFTER, CALM = 320, 150
READ = (1, 2, 4, 8, 16, 40, 100, 320)  # steps after the switch at which chi is read
CHI_BATCH = 128  # examples of the batch that it is read on, always the same


@dataclass(frozen=True, slots=True)
class After:
    """What followed a switch.

    Attributes:
        moments: what was done to them.
        before: chi of the step before.
        steps, chi: readings after it.
        losses: of each step, from 40 before the switch on; `at` is the place of the first of the new size.
        lr_factor: of the switch.
        ratio: predicted, of the second moments.
        run: the training as it was watched.
    """

    moments: str
    before: float
    steps: Sequence[int]
    chi: Sequence[float]
    losses: Sequence[float]
    lr_factor: float
    ratio: float
    run: Run = field(repr=False)
    at: int = 0

    @property
    def highest(self) -> float:
        """Highest chi after the switch over that before."""
        return max(self.chi) / self.before if self.before > 0 else math.nan

    @property
    def last(self) -> float:
        """Chi at the end over that before."""
        return self.chi[-1] / self.before if self.before > 0 else math.nan

    @property
    def rise(self) -> float:
        """Highest mean loss of 10 steps in the first 60 after the switch over the mean of the 40 before."""
        before = sum(self.losses[self.at - 40 : self.at]) / 40
        after = self.losses[self.at : self.at + 60]
        means = [sum(after[i : i + 10]) / 10 for i in range(0, len(after) - 9, 5)]
        return max(means) / before


def after_switches(
    task: Task, seed: int, old: int, new: int, lr: float, *, length: int = AFTER, read: Sequence[int] = READ,
    optimizer: str = "adam",
) -> dict[str, After]:  # fmt: skip
    """Trains at one size to half its way, then on at another, each time with another thing done to the moments.

    Args:
        task, seed: what is trained.
        old, new: batch sizes.
        lr: at the old one; Adam's follows the root of the batch.
        length: steps after the switch.
        read: those after which chi is read.
        optimizer: one of `batch_training.OPTIMIZERS`.
    """
    model, generator = task.network(seed), torch.Generator().manual_seed(31 + seed)
    owner = optimizer_of(optimizer, model, lr)
    step, most = 0, 60 + 160_000 // old
    while step < most:
        _step(task, model, owner, old, generator, lambda loss, batch: None)
        step += 1
        if step >= 60 and step % 20 == 0:
            with torch.no_grad():
                if float(loss_of(model, task.held())) <= task.half:
                    break
    noise = measured_noise(task, model, owner, torch.Generator().manual_seed(5), step, 0.0)
    state = copy.deepcopy((model.state_dict(), owner.state_dict())), generator.get_state()
    found = {}
    for moments in MOMENTS:
        (weights, memory), stream = state
        model.load_state_dict(weights)
        owner.load_state_dict(copy.deepcopy(memory))
        generator.set_state(stream)
        given = (noise.tr_sigma, noise.g_sq)
        found[moments] = _after(task, model, owner, generator, (old, new), moments, given, length, frozenset(read))
    return found


def _after(
    task: Task, model: nn.Module, owner: Optimizer, generator: torch.Generator, sizes: tuple[int, int], moments: str,
    noise: tuple[float, float], length: int, read: frozenset[int],
) -> After:  # fmt: skip
    inputs, labels = task.held()
    held = inputs[:CHI_BATCH], labels[:CHI_BATCH]
    losses: list[float] = []

    def chi(warm: Edge | None) -> Edge:
        return edge(lambda: loss_of(model, held), owner, tol=0.05, warm_start=warm, forms=False)

    with Monitor(model, owner, probes=[GradientNorm]) as monitor:
        def told(loss: torch.Tensor, batch: object) -> None:
            monitor.observe(loss, batch=batch)
            losses.append(float(loss.detach()))

        for _ in range(CALM):
            _step(task, model, owner, sizes[0], generator, told)
        reading = chi(None)
        before = float(reading.chi)
        done = switch(owner, old=sizes[0], new=sizes[1], moments=moments, noise=noise, monitor=monitor)
        steps, values = [], []
        for place in range(1, length + 1):
            _step(task, model, owner, sizes[1], generator, told)
            if place in read:
                reading = chi(reading)
                steps.append(place)
                values.append(float(reading.chi))
        run = monitor.run
    predicted = ratio(*noise, *sizes)
    return After(moments, before, steps, values, losses, done.lr_factor, predicted, run, CALM)


def _step(
    task: Task, model: nn.Module, owner: Optimizer, size: int, generator: torch.Generator,
    told: Callable[[torch.Tensor, object], None],
) -> None:  # fmt: skip
    batch = task.draw(size, generator)
    loss = loss_of(model, batch)
    told(loss, batch)
    owner.zero_grad()
    loss.backward()  # type: ignore[no-untyped-call]
    owner.step()


def false_spikes(after: After, *, declared: bool) -> list[Event]:
    """Returns the events of the loss that are raised from the switch on, with its mark or without it."""
    run = after.run
    if not declared:
        run = Run.from_arrays({name: run[name] for name in ("loss", "lr", "grad_norm")})
    return [event for event in scan(run, [Spike(), Divergence(), Drift()]) if event.onset >= after.at]
