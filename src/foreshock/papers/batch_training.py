"""Trains a task at one batch size until its loss is reached, and measures the noise of its gradients on the way."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from foreshock.batch_size.pairs import pair
from foreshock.papers.batch_tasks import Task, loss_of

__all__ = ["OPTIMIZERS", "Arrival", "Noise", "arrive", "gradients", "measured_noise", "optimizer_of"]

LOOKS = 1.06  # the loss is looked at whenever there are so many times the steps of the last look
CHUNKS, CHUNK = 32, 64  # examples of which the noise is measured: so many micro-batches of so many
DIVERGED = 3.0  # times the loss at the start


@dataclass(frozen=True, slots=True)
class Noise:
    """The noise of gradients at one step: tr Sigma and |G|^2, as they are, and divided by Adam's denominators."""

    step: int
    loss: float
    tr_sigma: float
    g_sq: float
    pre_tr_sigma: float = math.nan
    pre_g_sq: float = math.nan

    @property
    def simple(self) -> float:
        """Simple noise scale; NaN where |G|^2 is not above 0."""
        return self.tr_sigma / self.g_sq if self.g_sq > 0 else math.nan

    @property
    def preconditioned(self) -> float:
        """The same of preconditioned gradients."""
        return self.pre_tr_sigma / self.pre_g_sq if self.pre_g_sq > 0 else math.nan


@dataclass(frozen=True, slots=True)
class Arrival:
    """How a training came to its loss.

    Attributes:
        batch, lr: of it.
        steps: to the target, between looks by interpolation of ln loss; infinite where it did not come there.
        losses: (step, loss) at each look.
        noise: measured at some looks.
    """

    batch: int
    lr: float
    steps: float
    losses: Sequence[tuple[int, float]]
    noise: Sequence[Noise] = field(default_factory=tuple)


def _adam(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.Adam(model.parameters(), lr=lr)


def _sgd(model: nn.Module, lr: float) -> Optimizer:
    return torch.optim.SGD(model.parameters(), lr=lr)


OPTIMIZERS: dict[str, Callable[[nn.Module, float], Optimizer]] = {"adam": _adam, "sgd": _sgd}


def optimizer_of(name: str, model: nn.Module, lr: float) -> Optimizer:
    """Returns an optimizer of one of `OPTIMIZERS`, at torch's defaults otherwise."""
    return OPTIMIZERS[name](model, lr)


def arrive(
    task: Task, seed: int, batch: int, lr: float, *, optimizer: str = "adam", most: float = math.inf,
    noisy: bool = False, target: float | None = None,
) -> Arrival:  # fmt: skip
    """Trains until the loss on the held examples is at the target, or for `most` steps.

    Args:
        task: what is trained.
        seed: of network and batches.
        batch, lr: constant.
        optimizer: one of `OPTIMIZERS`.
        most: steps after which it is given up.
        noisy: measure the noise at every third look.
        target: another loss to stop at.
    """
    model, generator = task.network(seed), torch.Generator().manual_seed(1000 * seed + batch)
    other = torch.Generator().manual_seed(77 + seed)
    owner, goal = optimizer_of(optimizer, model, lr), task.target if target is None else target
    losses, noise = [(0, _look(task, model))], []
    step, due = 0, 1.0
    while step < most:
        loss = loss_of(model, task.draw(batch, generator))
        owner.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        owner.step()
        step += 1
        if step < due:
            continue
        due = max(step + 1.0, step * LOOKS)
        losses.append((step, _look(task, model)))
        if noisy and len(losses) % 3 == 0:
            noise.append(measured_noise(task, model, owner, other, step, losses[-1][1]))
        if not losses[-1][1] < DIVERGED * losses[0][1]:
            break
        if losses[-1][1] <= goal:
            return Arrival(batch, lr, _between(losses[-2], losses[-1], goal), losses, noise)
    return Arrival(batch, lr, math.inf, losses, noise)


def _look(task: Task, model: nn.Module) -> float:
    with torch.no_grad():
        return float(loss_of(model, task.held()))


def _between(before: tuple[int, float], after: tuple[int, float], goal: float) -> float:
    """Returns the step at which the loss was at its goal, on a straight line of ln loss between two looks."""
    share = math.log(before[1] / goal) / math.log(before[1] / after[1]) if before[1] > after[1] else 1.0
    return before[0] + min(1.0, max(0.0, share)) * (after[0] - before[0])


def gradients(task: Task, model: nn.Module, generator: torch.Generator, chunks: int, size: int) -> list[Tensor]:
    """Returns the mean gradients of `chunks` micro-batches of `size`, (parameters,) each; no `.grad` is touched."""
    params, found = list(model.parameters()), []
    for _ in range(chunks):
        grads = torch.autograd.grad(loss_of(model, task.draw(size, generator)), params)
        found.append(torch.cat([grad.reshape(-1) for grad in grads]))
    return found


def measured_noise(
    task: Task, model: nn.Module, owner: Optimizer, generator: torch.Generator, step: int, loss: float
) -> Noise:
    """Returns the noise at the parameters as they are, from 2,048 examples of their own."""
    each = torch.stack(gradients(task, model, generator, CHUNKS, CHUNK)).double()
    plain = _pair_of(each)
    weights = _denominators(model, owner)
    pre = _pair_of(each / weights) if weights is not None else (math.nan, math.nan)
    return Noise(step, loss, *plain, *pre)


def _pair_of(each: Tensor) -> tuple[float, float]:
    found = pair(each.square().sum(1).tolist(), float(each.mean(0).square().sum()), small=CHUNK, big=CHUNKS * CHUNK)
    return float(found.tr_sigma), float(found.g_sq)


def _denominators(model: nn.Module, owner: Optimizer) -> Tensor | None:
    """Returns sqrt(vhat) + eps of all parameters, (parameters,); None without second moments."""
    found = []
    for param in model.parameters():
        state = owner.state.get(param) or {}
        if "exp_avg_sq" not in state:
            return None
        group = owner.param_groups[0]
        corrected = state["exp_avg_sq"].double() / (1.0 - group["betas"][1] ** float(state["step"]))
        found.append((corrected.sqrt() + group["eps"]).reshape(-1))
    return torch.cat(found)
