"""Small trainings with one thing planted in each, under a monitor as it comes: the diagnosis names what it was."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import foreshock
from foreshock.diagnose import Diagnosis
from foreshock.run import Run

AT, STEPS = 100, 125
Batch = tuple[Tensor, Tensor]


class Loop:
    """A net on clusters in 20 dimensions, one label of ten wrong, that learns from batches of 128, as a user's loop."""

    def __init__(self, optimizer: str, seed: int) -> None:
        self.stream = torch.Generator().manual_seed(seed)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            self.model = nn.Sequential(nn.Linear(20, 24), nn.ReLU(), nn.Linear(24, 5))
        params = self.model.parameters()
        self.optimizer: torch.optim.Optimizer = (
            torch.optim.Adam(params, 0.01) if optimizer == "adam" else torch.optim.SGD(params, 0.1, momentum=0.5)
        )
        self.centres = torch.randn(5, 20, generator=self.stream)

    def batch(self) -> Batch:
        labels = torch.randint(5, (128,), generator=self.stream)
        inputs = self.centres[labels] + torch.randn(128, 20, generator=self.stream)
        wrong = torch.rand(128, generator=self.stream) < 0.1
        return inputs, torch.where(wrong, torch.randint(5, (128,), generator=self.stream), labels)

    def loss(self, batch: Batch) -> Tensor:
        return F.cross_entropy(self.model(batch[0]), batch[1])


@dataclass(frozen=True)
class Plant:
    """What goes wrong at step `AT`: functions of the loop at the places of its step."""

    cause: str
    optimizer: str
    batch: Callable[[Loop, Batch], Batch] = lambda loop, batch: batch
    before: Callable[[Loop], Any] = lambda loop: None
    told: Callable[[float], float] = lambda loss: loss
    gradients: Callable[[Loop], Any] = lambda loop: None
    rate: float = 1.0


def wrong_labels(loop: Loop, batch: Batch) -> Batch:
    return batch[0], (batch[1] + 1) % 5


def infinite(loop: Loop, batch: Batch) -> Batch:
    batch[0][3, 4] = math.inf
    return batch


def scaled(loop: Loop) -> None:
    for parameter in loop.model.parameters():
        assert parameter.grad is not None
        parameter.grad.mul_(300.0)


def fresh_head(loop: Loop) -> None:
    with torch.no_grad():
        loop.model[2].weight.copy_(torch.randn(5, 24, generator=loop.stream))
        loop.model[2].bias.zero_()


def flipped(loop: Loop) -> None:
    weight = loop.model[0].weight.data
    weight.view(torch.int32)[5, 7] ^= 1 << 30  # the top bit of an exponent: times 2**128


PLANTS = {
    "labels that are wrong for a batch": Plant("outlier_batch", "adam", batch=wrong_labels),
    "gradients 300 times as long": Plant("update_burst", "sgd", gradients=scaled),
    "a learning rate 60 times as high": Plant("schedule", "sgd", rate=60.0),
    "a head that is drawn again": Plant("cold_start", "sgd", before=fresh_head),
    "an infinite input": Plant("nonfinite", "adam", batch=infinite),
    "a bit of a weight flipped": Plant("not_reproducible", "sgd", before=flipped),
    "a loss that was written down wrong": Plant("unexplained", "adam", told=lambda loss: 3.0 * loss + 2.0),
}


def trained(plant: Plant, seed: int) -> tuple[Run, Diagnosis]:
    """Returns the run of a training and the diagnosis of the first event after its plant."""
    loop = Loop(plant.optimizer, seed)
    usual = loop.optimizer.param_groups[0]["lr"]
    with foreshock.Monitor(loop.model, loop.optimizer) as monitor:
        for step in range(STEPS):
            batch = loop.batch()
            struck = step == AT
            if struck:
                batch = plant.batch(loop, batch)
                plant.before(loop)
            loss = loop.loss(batch)
            monitor.observe(plant.told(float(loss.detach())) if struck else float(loss.detach()), batch=batch)
            loop.optimizer.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if struck:
                plant.gradients(loop)
            loop.optimizer.param_groups[0]["lr"] = usual * (plant.rate if AT <= step < AT + 4 else 1.0)
            loop.optimizer.step()
        run = monitor.run
    event = next(each for each in run.events if each.kind in ("spike", "divergence", "nonfinite") and each.raised >= AT)
    return run, foreshock.diagnose(run, event)


@pytest.mark.parametrize("name", PLANTS)
def test_the_cause_that_was_planted_is_the_likeliest(name: str) -> None:
    plant = PLANTS[name]
    _, found = trained(plant, seed=3)
    assert found.best.name == plant.cause, found.summary
    assert found.best.score > 0.5


def test_a_cause_is_named_with_evidence_and_all_others_are_judged() -> None:
    _, found = trained(PLANTS["labels that are wrong for a batch"], seed=3)
    assert found.best.evidence
    assert found.best.advice
    assert {"update_burst", "schedule", "cold_start", "not_reproducible"} <= {each.name for each in found.ruled_out}


def test_the_loss_alone_does_not_tell_a_bad_batch_from_a_wrong_reading() -> None:
    run, _ = trained(PLANTS["a loss that was written down wrong"], seed=3)
    alone = Run.from_arrays({"step": run.steps, "loss": run["loss"]})
    event = next(each for each in run.events if each.kind == "spike" and each.raised >= AT)
    found = foreshock.diagnose(alone, event)
    assert found.unjudged
    assert found.best.score < 0.9
