"""One training of the S3 reproduction: watched by a monitor, its updates measured in learning rates."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.monitor import Monitor
from foreshock.papers.s3_arms import Arm
from foreshock.papers.s3_tasks import Task
from foreshock.probes import GradientNorm, Update
from foreshock.run import Event, Run
from foreshock.threads import one_thread

__all__ = ["LAST", "PAPER", "Trace", "smooth", "train", "warmed"]

PAPER = "s3"
ROUNDED = 1e-9  # of a mean: its own last one is to be reached by every training
WARM = 20  # steps of linear warm-up
LAST = 50  # steps whose mean is the loss at a step
FIRST = 0.03  # the share of its lr to which a cosine schedule falls

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Trace:
    """What one training gave.

    Attributes:
        task, arm: names.
        factor, lr: the learning rate over the optimizer's 1x, and as it is.
        seed: of start and batches.
        losses: (n,) of the batches, before each step; shorter than it should be where one was not finite.
        whole: steps that were asked for.
        held, accuracy: loss and share of right answers on what is held out, at the end.
        largest: of |u|, over all steps and coordinates, where theta <- (1 - lr wd) theta - lr u.
        run: as recorded, with what the detectors raised.
        seconds: of this process.
    """

    task: str
    arm: str
    factor: float
    lr: float
    seed: int
    losses: Floats
    whole: int
    held: float
    accuracy: float
    largest: float
    run: Run
    seconds: float

    @property
    def spikes(self) -> list[Event]:
        """Returns the loss spikes that the shipped detector found."""
        return [event for event in self.run.events if event.kind == "spike" and event.signal == "loss"]

    @property
    def rise(self) -> float:
        """Returns the height of the highest of them above the level before it, nats; 0 without one."""
        return max((event.height for event in self.spikes), default=0.0)

    @property
    def final(self) -> float:
        """Returns the mean loss of the last `LAST` steps; infinite where it did not stay finite."""
        return float(self.losses[-LAST:].mean()) if len(self.losses) == self.whole else math.inf

    @property
    def diverged(self) -> bool:
        """Returns whether the loss was not finite, or ended above where it began."""
        return not self.final <= self.losses[0]

    def reaches(self, loss: float) -> float:
        """Returns the first step by which the mean loss of `LAST` steps is at or below `loss`; infinite if none is."""
        below = np.flatnonzero(smooth(self.losses) <= loss + ROUNDED * abs(loss))
        return float(below[0] + LAST) if len(below) else math.inf


def smooth(losses: Floats) -> Floats:
    """Returns means over `LAST` steps in a row, (n - LAST + 1,).

    >>> smooth(np.arange(52.0))
    array([24.5, 25.5, 26.5])
    """
    return np.convolve(losses, np.full(LAST, 1 / LAST), "valid") if len(losses) >= LAST else np.empty(0)


def warmed(step: int, steps: int, *, cosine: bool) -> float:
    """Returns the share of its learning rate at a step: linear warm-up, then constant or along a cosine.

    >>> [round(warmed(step, 120, cosine=True), 3) for step in (0, 19, 69, 119)]
    [0.05, 1.0, 0.515, 0.03]
    """
    up = min(1.0, (step + 1) / WARM)
    if not cosine or step < WARM:
        return up
    done = (step + 1 - WARM) / (steps - WARM)
    return FIRST + (1 - FIRST) * 0.5 * (1 + math.cos(math.pi * done))


def train(task: Task, arm: Arm, factor: float, seed: int, *, steps: int = 0, cosine: bool = False) -> Trace:
    """Returns one training, on one thread, without clipping.

    Args:
        task: data and network.
        arm: the optimizer; its weight decay falls as the learning rate rises, so that their product stays.
        factor: of the optimizer's learning rate at 1x.
        seed: of the network and of the batches, the same for all optimizers.
        steps: in place of the task's own number.
        cosine: the learning rate falls along a cosine, in place of a constant one.
    """
    steps, started = steps or task.steps, time.process_time()
    lr = factor * arm.ratio * task.lr
    decay = task.decay * (1.0 if arm.keeps_decay else task.lr / lr)
    model, batches = task.network(seed), np.random.default_rng([seed, 1])
    optimizer = arm.make(model.parameters(), lr, decay)
    (group,) = optimizer.param_groups
    lr = group["lr"]
    with one_thread():
        run, losses, largest = _watched(task, model, optimizer, batches, [
            warmed(step, steps, cosine=cosine) for step in range(steps)
        ])  # fmt: skip
        finite = len(losses) == steps
        held, accuracy = task.judged(model) if finite else (math.inf, math.nan)
    run.meta.update(paper=PAPER, name=f"{task.title}: {arm.title}, {factor:g}x lr, seed {seed}", seed=seed)
    return Trace(
        task.name, arm.name, factor, lr, seed, losses, steps, held if math.isfinite(held) else math.inf, accuracy,
        largest, run, time.process_time() - started,
    )


def _watched(
    task: Task, model: nn.Module, optimizer: Optimizer, batches: np.random.Generator, shares: list[float]
) -> tuple[Run, Floats, float]:
    """Returns the run of a training, its losses, and the largest |u|."""
    params: list[Tensor] = list(model.parameters())
    losses, most = [], []
    (group,) = optimizer.param_groups
    full, decay = group["lr"], group["weight_decay"]
    before = [torch.empty_like(param) for param in params]
    # what is measured of the update itself is taken here; the monitor's part is the loss and what its detectors say
    with Monitor(model, optimizer, probes=[GradientNorm, Update]) as watch:
        for share in shares:
            loss = task.loss(model, *task.draw(batches))
            value = loss.item()
            watch.observe(loss)
            if not math.isfinite(value):
                break
            losses.append(value)
            group["lr"] = full * share
            optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            with torch.no_grad():
                torch._foreach_copy_(before, params)
                optimizer.step()
                torch._foreach_mul_(before, 1.0 - group["lr"] * decay)
                torch._foreach_sub_(before, params)
                most.append(torch.stack(torch._foreach_norm(before, math.inf)).max() / group["lr"])
    largest = float(torch.stack(most).max()) if most else math.nan
    return watch.run, np.array(losses), largest
