"""Ordinary trainings in which nothing goes wrong, and in which a guard therefore has nothing to do.

Some are noisy on purpose: tiny batches, wrong labels, targets with heavy tails, learning rates that jump by plan, a
loss that falls to nothing, full batches at the edge of stability. None spikes by itself, as RMSprop does on data learnt
by heart at a constant learning rate of 1e-3 (its loss of 1e-4 leaps to 3): that is no calm training.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.lr_scheduler import CosineAnnealingWarmRestarts, LambdaLR, LRScheduler, MultiStepLR, OneCycleLR

from foreshock.papers.digits import digits, scans
from guard_nets import Task, gpt

Make = Callable[[nn.Module], Optimizer]
Schedule = Callable[[Optimizer, int], LRScheduler]
Maker = Callable[[int, int], Task]
"""(seed, steps) -> the training."""


def sgd(lr: float, momentum: float = 0.9) -> Make:
    return lambda net: torch.optim.SGD(net.parameters(), lr, momentum=momentum, weight_decay=5e-4)


def adamw(lr: float, beta2: float = 0.999) -> Make:
    return lambda net: torch.optim.AdamW(net.parameters(), lr, (0.9, beta2))


def constant(optimizer: Optimizer, steps: int) -> LRScheduler:
    return LambdaLR(optimizer, lambda t: 1.0)


def step_decay(optimizer: Optimizer, steps: int) -> LRScheduler:
    return MultiStepLR(optimizer, [steps // 2, steps * 3 // 4], 0.1)


def restarts(optimizer: Optimizer, steps: int) -> LRScheduler:
    return CosineAnnealingWarmRestarts(optimizer, max(1, steps // 10))


def one_cycle(optimizer: Optimizer, steps: int) -> LRScheduler:
    return OneCycleLR(optimizer, 0.1, total_steps=steps + 1)


def sawtooth(optimizer: Optimizer, steps: int) -> LRScheduler:
    """Returns a learning rate that is ten times lower in the second half of every 300 steps."""
    return LambdaLR(optimizer, lambda t: 1.0 if t % 300 < 150 else 0.1)


def classifier(
    seed: int, steps: int, optimizer: Make, schedule: Schedule = constant, *,
    batch: int = 64, dropout: float = 0.0, wrong: float = 0.0,
) -> Task:
    """Returns an MLP 64-128-128-10 on scikit-learn's digits, of whose labels a share is `wrong`."""
    pixels, labels = scans(1797)
    pixels = pixels.float()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Dropout(dropout), nn.Linear(128, 128), nn.ReLU(), nn.Dropout(dropout),
            nn.Linear(128, 10),
        )  # fmt: skip
    chance = torch.Generator().manual_seed(7)
    order = torch.randperm(1797, generator=chance)
    train, rest = order[:1400], order[1400:]
    targets = torch.where(
        torch.rand(1797, generator=chance) < wrong, torch.randint(10, (1797,), generator=chance), labels
    )

    def draw(i: int) -> tuple[Tensor, Tensor]:
        rows = train[torch.randint(1400, (batch,), generator=torch.Generator().manual_seed(1_000_003 * seed + i))]
        return pixels[rows], targets[rows]

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.cross_entropy(model(pair[0]), pair[1])

    return task(model, optimizer(model), schedule, draw, loss, lambda: loss((pixels[rest], labels[rest])), steps)


def regression(seed: int, steps: int, optimizer: Make) -> Task:
    """Returns a regression whose targets have the tails of Student's t with 3 degrees of freedom, squared error."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = nn.Sequential(nn.Linear(8, 64), nn.Tanh(), nn.Linear(64, 1))

    def draw(i: int) -> tuple[Tensor, Tensor]:
        chance = torch.Generator().manual_seed(1_000_003 * seed + i)
        x = torch.randn(64, 8, generator=chance)
        tails = torch.randn(64, 1, generator=chance) / torch.randn(64, 3, generator=chance).norm(dim=1, keepdim=True)
        return x, torch.sin(2 * x[:, :1]) + x[:, 1:2] * x[:, 2:3] + 0.5 * tails

    def loss(pair: tuple[Tensor, Tensor]) -> Tensor:
        return F.mse_loss(model(pair[0]), pair[1])

    return task(model, optimizer(model), constant, draw, loss, lambda: loss(draw(-1)), steps)


def full_batch(seed: int, steps: int, optimizer: Make) -> Task:
    """Returns the regression on all 500 digits at once that experiments at the edge of stability train."""
    data = digits(seed)
    net = data.model
    return task(net, optimizer(net), constant, lambda i: None, lambda _: data.loss(), data.loss, steps)


def task(
    model: nn.Module, optimizer: Optimizer, schedule: Schedule, draw: Callable[[int], object],
    loss: Callable[..., Tensor], held_out: Callable[[], Tensor], steps: int,
) -> Task:  # fmt: skip
    """Returns a training that knows no foreign data."""

    def validate() -> float:
        model.eval()
        with torch.no_grad():
            found = held_out().item()
        model.train()
        return found

    return Task(model, optimizer, schedule(optimizer, steps), draw, draw, loss, validate, None, steps)


CALM: dict[str, Maker] = {
    "GPT, AdamW, cosine": gpt,
    "GPT, Adam's defaults, constant lr": lambda s, n: gpt(s, n, width=32, optimizer=adamw(1e-3), schedule=constant),
    "GPT, warm restarts": lambda s, n: gpt(s, n, width=32, optimizer=adamw(3e-3, 0.95), schedule=restarts),
    "GPT, bfloat16": lambda s, n: gpt(s, n, width=32, amp=True),
    "GPT, batches of 2": lambda s, n: gpt(s, n, width=32, batch=2, optimizer=adamw(1e-3, 0.99)),
    "GPT, dropout .2": lambda s, n: gpt(s, n, width=32, dropout=0.2),
    "GPT, SGD, step decay": lambda s, n: gpt(s, n, width=32, optimizer=sgd(0.1), schedule=step_decay),
    "digits, SGD, step decay": lambda s, n: classifier(s, n, sgd(0.05), step_decay),
    "digits, SGD, one cycle": lambda s, n: classifier(s, n, sgd(0.05), one_cycle),
    "digits, SGD, batches of 4": lambda s, n: classifier(s, n, sgd(0.005), batch=4),
    "digits, Adam, constant lr": lambda s, n: classifier(s, n, adamw(1e-3)),
    "digits, AdamW, lr in a sawtooth": lambda s, n: classifier(s, n, adamw(1e-3), sawtooth, dropout=0.2),
    "digits, AdamW, dropout .3": lambda s, n: classifier(s, n, adamw(1e-3), batch=16, dropout=0.3),
    "digits, AdamW, 30 % wrong labels": lambda s, n: classifier(s, n, adamw(1e-3), batch=16, wrong=0.3),
    "digits, RMSprop, dropout .3": lambda s, n: classifier(
        s, n, lambda net: torch.optim.RMSprop(net.parameters(), 3e-4), dropout=0.3
    ),
    "regression, heavy tails": lambda s, n: regression(s, n, adamw(1e-3)),
    "digits, full batches at the edge": lambda s, n: full_batch(s, n, sgd(0.2, 0.0)),
}
"""The trainings by name."""
