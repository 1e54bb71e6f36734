"""The experiments on a planted run while its training is alive: replay, attribution, and who finds the bad examples."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import torch

import foreshock
from explain_nets import Batch
from explain_train import Training
from foreshock.attribution import attribute, attribute_event, capture
from foreshock.errors import ForeshockError
from foreshock.run import Event


def replayed(monitor: foreshock.Monitor, training: Any, event: Event) -> str:
    """Replays an event, the finding kept with the run; returns why it could not be, or ""."""
    try:
        foreshock.replay(monitor, event, training.advance)
    except ForeshockError as error:
        return str(error)
    return ""


class Suspects:
    """The bad examples of one batch, looked for while the training is at its step.

    Attributes:
        facts: share of the planted rows among as many top ones: by the "loss" of each before the step, by its
            "gradient" norm, and among the "culprits" of the step, of what it did to the loss of the next batch, which
            is good; "rise", what that was, relative to the loss; "guilty", the share of it that goes where the bad
            examples are left out of their batch; "event", among those that an attribution of the event names.
    """

    def __init__(self, training: Training, batch: Batch) -> None:
        self.training, self.batch, self.planted = training, batch, training.planted[training.at]
        each = training.task.each(batch)
        params = [p for p in training.model.parameters() if p.requires_grad]
        norms = []
        for loss in each:
            grads = torch.autograd.grad(loss, params, retain_graph=True)
            norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        self.facts: dict[str, Any] = {
            "k": len(self.planted), "loss": found(each.detach().tolist(), self.planted),
            "gradient": found(norms, self.planted),
        }  # fmt: skip

    def blame(self, step: capture) -> None:
        """Attributes what the step did to the next batch."""
        training, after = self.training, self.training.draw(self.training.at + 1)[0]
        told = attribute(
            lambda: training.task.each(after), step.params, step.before, step.after, names=training.model,
            optimizer=step, culprit_loss=lambda: training.task.each(self.batch),
        )  # fmt: skip
        assert told.culprits is not None
        self.facts |= {
            "culprits": found(told.culprits.tolist(), self.planted), "rise": told.measured / told.loss,
            "completeness": told.completeness, "coverage": told.coverage, "history": told.history / told.measured,
            "guilty": guilty(training, told.measured),
        }  # fmt: skip

    def event(self, monitor: foreshock.Monitor, event: Event) -> None:
        """Attributes the event, as a user would, without being told a step."""
        try:
            told = attribute_event(monitor, event, self.training.advance, self.training.task.each)
        except ForeshockError as error:
            self.facts["event_refused"] = str(error)
            return
        self.facts |= {"event_step": told.step, "from_step": told.from_step, "from_batch": told.from_batch}
        wanted = {(self.training.at, row) for row in self.planted}
        self.facts["event"] = len(wanted & set(told.blamed(len(wanted)))) / len(wanted)


def found(values: Sequence[float], planted: Sequence[int]) -> float:
    """Returns the share of the planted rows among as many of the highest values.

    >>> found([0.1, 3.0, 0.2, 2.0], [1, 2])
    0.5
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return len(set(order[: len(planted)]) & set(planted)) / len(planted)


def guilty(training: Training, rise: float) -> float:
    """Returns the share of a rise of the next batch's loss that goes where the bad examples are left out."""
    spoil = training.plant.batch
    assert spoil is not None

    def without(other: Training, step: int, batch: Batch) -> Batch:
        inputs, targets = spoil(other, step, batch)
        good = [i for i in range(len(inputs)) if i not in other.planted[step]]
        return inputs[good], targets[good]

    other = Training(*training.made, dataclasses.replace(training.plant, batch=without), training.at)
    for step in range(training.at):
        other.advance(other.draw(step))
    batch, after = other.draw(training.at), other.draw(training.at + 1)[0]
    with torch.no_grad():
        before = float(other.task.loss(after))
    other.advance(batch)
    with torch.no_grad():
        return 1.0 - (float(other.task.loss(after)) - before) / rise
