"""The goodput policy at work: noise measured while it trains, advice damped, batches switched; in modelled time."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from foreshock.batch_size.advice import Steady, switch_advice
from foreshock.batch_size.estimate import NoiseScale
from foreshock.batch_size.goodput import C
from foreshock.batch_size.switch import switch
from foreshock.papers.batch_tasks import Task, loss_of
from foreshock.papers.batch_training import LOOKS, optimizer_of

__all__ = ["FIXED_COSTS", "Followed", "fixed_times", "follow"]

FIXED_COSTS = (32.0, 256.0, 2048.0)
"""Time of a step at no examples, in units of the time per example: T(B) = a + B."""

EVERY = 5  # steps from one advice to the next: these trainings are of hundreds of steps, not of hundred thousands
PATIENCE, REST = 2, 2  # advice in a row that is followed, and that is left out after it
PARTS = 8  # micro-batches of a step, from which the noise is read
EMA = 0.95
MOST = 20_000  # steps


@dataclass(frozen=True, slots=True)
class Followed:
    """A training whose batch followed the advice.

    Attributes:
        time: to the target, in the time of an example; infinite where it did not come there.
        sizes: (step, batch size) from each switch on, the first at 0.
        losses: (time, loss) at each look.
        scales: (step, noise scale) at each advice that had one.
    """

    time: float
    sizes: Sequence[tuple[int, int]]
    losses: Sequence[tuple[float, float]]
    scales: Sequence[tuple[int, float]]


def fixed_times(steps: Mapping[int, float], cost: float) -> dict[int, float]:
    """Returns the time to the target at each fixed size: S(B) (a + B).

    >>> fixed_times({8: 100.0, 16: 60.0}, 32.0)
    {8: 4000.0, 16: 2880.0}
    """
    return {batch: count * (cost + batch) for batch, count in steps.items()}


def follow(
    task: Task, seed: int, cost: float, *, start: int, lr: float, batches: Sequence[int], c: float = C,
    most: int = MOST,
) -> Followed:  # fmt: skip
    """Trains with Adam to the task's target, the batch following the advice by plain goodput.

    Args:
        task, seed: what is trained.
        cost: a of T(B) = a + B.
        start, lr: batch size and learning rate to begin with; the learning rate follows the root of the batch.
        batches: to choose from.
        c: critical batch size over noise scale.
        most: steps after which it is given up.
    """
    model, generator = task.network(seed), torch.Generator().manual_seed(1000 * seed + 3)
    owner, params = optimizer_of("adam", model, lr), list(model.parameters())
    noise, steady = NoiseScale(ema=EMA), Steady(patience=PATIENCE, rest=REST)
    batch, time, step, due = start, 0.0, 0, 1.0
    with torch.no_grad():
        losses = [(0.0, float(loss_of(model, task.held())))]
    sizes: list[tuple[int, int]] = [(0, start)]
    scales: list[tuple[int, float]] = []
    while step < most:
        parts = [loss_of(model, task.draw(batch // PARTS, generator)) for _ in range(PARTS)]
        grads = [torch.autograd.grad(part, params) for part in parts]
        each = torch.stack([torch.cat([grad.reshape(-1) for grad in grad_of]) for grad_of in grads])
        mean = each.mean(0)
        noise.update(each.square().sum(1).tolist(), float(mean.square().sum()), small=batch // PARTS, big=batch)
        place = 0
        for param in params:
            param.grad = mean[place : place + param.numel()].view_as(param)
            place += param.numel()
        owner.step()
        step, time = step + 1, time + cost + batch
        if step >= due:
            due = max(step + 1.0, step * LOOKS)
            with torch.no_grad():
                losses.append((time, float(loss_of(model, task.held()))))
            if losses[-1][1] <= task.target:
                return Followed(_arrived(losses, task.target), sizes, losses, scales)
        if step % EVERY == 0:
            found = noise.value()
            if found.status == "ok":
                scales.append((step, found.noise_scale))
            advice = steady.decide(switch_advice(batch, (cost, 1.0), found, batches=batches, c=c))
            if advice.decision == "switch":
                new = int(advice.target)  # type: ignore[arg-type]
                switch(owner, old=batch, new=new, lr_rule="sqrt")
                batch = new
                sizes.append((step, new))
    return Followed(math.inf, sizes, losses, scales)


def _arrived(losses: Sequence[tuple[float, float]], goal: float) -> float:
    (early, high), (late, low) = losses[-2:]
    share = math.log(high / goal) / math.log(high / low) if high > low else 1.0
    return early + min(1.0, max(0.0, share)) * (late - early)
