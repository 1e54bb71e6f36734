"""Does a burst's displacement rank optimizers? One bad step in trainings that are calm, and how high the loss goes.

Derived, and asked here: an optimizer that moves further after an isolated burst, D learning rates in all and u0 in the
largest step, suffers more from one. A small network on digits is trained by twelve optimizers with one learning rate,
and with rates at which all move alike; then one gradient is 1,000 times as large, or is that of a batch whose labels
are wrong. The rank correlation of how far the loss rises with D, u0 and sup|u|, times lr, says which of them tells.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim import Adamax, AdamW, NAdam, Optimizer, RMSprop

from foreshock.optim import S3, burst_response
from foreshock.papers.s3_tasks import TASKS, Task
from foreshock.papers.studies import Found, Live, Shelf, Statement

__all__ = ["ARMS", "STATEMENTS", "Struck", "bursts", "rank_correlation"]

LR = 2e-3  # of all; AdamW's best on these digits is 1e-2, where it spikes by itself
CALM, AFTER, JUDGED = 300, 40, 10  # steps before the burst, after it, and of those the ones before that are usual
SCALE = 1000.0  # times the gradient
STRONG = 0.8  # rank correlation from which an order is called one; 12 in a random order reach .5 once in twenty
Make = Callable[[Iterable[Tensor], float], Optimizer]


def _adamw(*betas: float) -> Make:
    return lambda params, lr: AdamW(params, lr, betas=(betas[0], betas[1]), weight_decay=0.0)


def _s3(**settings: Any) -> Make:
    return lambda params, lr: S3(params, lr, **settings)


ARMS: dict[str, Make] = {
    "AdamW .9/.999": _adamw(0.9, 0.999), "AdamW .9/.99": _adamw(0.9, 0.99), "AdamW .9/.95": _adamw(0.9, 0.95),
    "AdamW .95/.95": _adamw(0.95, 0.95), "AdamW 0/.999": _adamw(0.0, 0.999),
    "NAdam .9/.999": lambda params, lr: NAdam(params, lr, momentum_decay=0.0),
    "Adamax .9/.999": Adamax, "RMSprop .99": RMSprop,
    "S3 p 2": _s3(p=2.0), "S3 p 3": _s3(), "S3 p 6": _s3(p=6.0), "S3 .9/.999": _s3(beta=0.9, beta2=0.999),
}  # fmt: skip
KINDS = ("scaled gradient", "wrong labels")
RATES = ("one lr", "one usual step")
KEYS: dict[str, str] = {"D": "D", "D of its size": "D of a burst of its size", "u0": "u0", "sup": "sup|u|"}


@dataclass(frozen=True, slots=True)
class Struck:
    """One training that was struck.

    Attributes:
        arm, rate, kind: which.
        lr: learning rate.
        usual: root mean square of the updates before it, in learning rates.
        before: loss on the digits held out before it.
        peak: its highest in the steps after it.
        ratio: norm of its gradient over the median of those before it.
        displacement, largest, sup: D, u0 and sup|u| of its optimizer, in learning rates.
        own: D of a burst of that size.
    """

    arm: str
    rate: str
    kind: str
    lr: float
    usual: float
    before: float
    peak: float
    ratio: float
    displacement: float
    largest: float
    sup: float
    own: float

    @property
    def rise(self) -> float:
        """How far the loss went up."""
        return self.peak - self.before


STATEMENTS = tuple(
    Statement(
        f"bursts: {rate}, {kind}, {key}",
        f"{'Digits, ' if kind == KINDS[0] else '... '}{rate}, {kind}: rank correlation of the rise with {told}",
        STRONG, math.inf, "derived from the update rule; asked here",
    )
    for rate in RATES for kind in KINDS for key, told in KEYS.items()
)  # fmt: skip


def bursts(seed: int, live: Live, steps: int, shelf: Shelf) -> Found:
    """Returns the rank correlation of the rise of the loss with lr D, lr u0 and lr sup|u|, for both kinds of bursts."""
    task, calm, struck = TASKS["digits"](), steps or CALM, []
    usual: dict[str, float] = {}
    for place, rate in enumerate(RATES):
        for number, (name, make) in enumerate(ARMS.items()):
            live((place + number / len(ARMS)) / len(RATES), f"seed {seed}, digits, {rate}: {name}")
            lr = LR * (1.0 if not place else usual["AdamW .9/.999"] / usual[name])
            found = _struck(task, name, rate, make, seed, lr, calm)
            usual.setdefault(name, found[0].usual)
            struck += found
    numbers = {}
    for rate in RATES:
        for kind in KINDS:
            there = [each for each in struck if (each.rate, each.kind) == (rate, kind)]
            for key, told in _told(there).items():
                numbers[f"bursts: {rate}, {kind}, {key}"] = rank_correlation(told, [each.rise for each in there])
    return Found(numbers, drawn={"bursts": struck})


def _told(struck: Sequence[Struck]) -> dict[str, list[float]]:
    """Returns D, u0 and sup|u|, each times the learning rate."""
    return {
        "D": [each.lr * each.displacement for each in struck], "u0": [each.lr * each.largest for each in struck],
        "sup": [each.lr * each.sup for each in struck], "D of its size": [each.lr * each.own for each in struck],
    }


def _struck(task: Task, name: str, rate: str, make: Make, seed: int, lr: float, calm: int) -> list[Struck]:
    """Returns a training that goes on after each kind of burst, from the same state."""
    model, batches = task.network(seed), np.random.default_rng([seed, 2])
    optimizer = make(model.parameters(), lr)
    moved, sizes = [], []
    for step in range(calm):
        before = [param.detach().clone() for param in model.parameters()] if step >= calm - JUDGED else []
        sizes.append(_step(task, model, optimizer, task.draw(batches)))
        moved += [(old - new.detach()).square().mean() for old, new in zip(before, model.parameters(), strict=False)]
    usual = math.sqrt(float(torch.stack(moved).mean())) / lr
    response = burst_response(optimizer)
    held, told = task.judged(model)[0], (response.displacement, response.peak, response.sup)
    found = []
    for kind in KINDS:
        again = copy.deepcopy(model)
        other = make(again.parameters(), lr)
        other.load_state_dict(copy.deepcopy(optimizer.state_dict()))
        rest, peak, ratio = np.random.default_rng([seed, 3]), held, 0.0
        for step in range(AFTER):
            inputs, targets = task.draw(rest)
            if step == 0 and kind == KINDS[1]:
                targets = (targets + 1) % 10
            size = _step(task, again, other, (inputs, targets), SCALE if step == 0 and kind == KINDS[0] else 1.0)
            ratio = ratio or size / float(np.median(sizes[-JUDGED:]))
            loss = task.judged(again)[0]
            peak = max(peak, loss if math.isfinite(loss) else math.inf)
        own = burst_response(optimizer, ratio=ratio).displacement
        found.append(Struck(name, rate, kind, lr, usual, held, peak, ratio, *told, own))
    return found


def _step(
    task: Task, model: nn.Module, optimizer: Optimizer, batch: tuple[Tensor, Tensor], scale: float = 1.0
) -> float:
    """Takes a step with `scale` times the gradient, and returns the norm of that."""
    optimizer.zero_grad()
    loss = task.loss(model, *batch)
    loss.backward()  # type: ignore[no-untyped-call]
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    torch._foreach_mul_(grads, scale)
    optimizer.step()
    return float(torch.stack(torch._foreach_norm(grads)).norm())


def rank_correlation(one: Sequence[float], two: Sequence[float]) -> float:
    """Returns Spearman's rank correlation; equal values share their ranks.

    >>> rank_correlation([1, 2, 3, math.inf], [10, 20, 30, 40]), rank_correlation([1, 2, 3], [3, 2, 1])
    (1.0, -1.0)
    """
    ranks = [np.array([(np.sum(np.less(values, each)) + np.sum(np.less_equal(values, each))) / 2 for each in values])
             for values in (one, two)]  # fmt: skip
    a, b = (each - each.mean() for each in ranks)
    size = float(np.sqrt((a @ a) * (b @ b)))
    return round(float(a @ b) / size, 12) if size else math.nan
