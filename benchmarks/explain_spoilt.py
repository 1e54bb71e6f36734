"""What is planted in the data, and in what is reported: batches that are off, rows among good ones, losses misread."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from explain_plants import Plant, generator, whole
from foreshock.testing.batches import constant_like, random_like

if TYPE_CHECKING:
    from explain_nets import Batch
    from explain_train import Training


# ---- outlier_batch


def wrong_labels(size: float) -> Plant:
    """All targets shuffled over the batch, for `size` steps."""

    def batch(training: Training, step: int, batch: Batch) -> Batch:
        order = torch.randperm(len(batch[0]), generator=generator(training, step))
        if training.task.text:
            return batch[0], random_like(batch[1], generator(training, step))
        return batch[0], batch[1][order]

    return Plant("outlier_batch", whole(size), batch=batch)


def random_inputs(size: float) -> Plant:
    """Noise for inputs, for `size` steps."""
    return Plant("outlier_batch", whole(size), batch=lambda t, i, b: random_like(b, generator(t, i)))


def constant_inputs(size: float) -> Plant:
    """One value for all of a batch, its targets left as they are where they are classes."""

    def batch(training: Training, step: int, batch: Batch) -> Batch:
        if training.task.text:
            return constant_like(batch, generator(training, step))
        return constant_like(batch[:1], generator(training, step))[0], batch[1]

    return Plant("outlier_batch", whole(size), batch=batch)


def scaled_inputs(size: float) -> Plant:
    """Inputs `size` times as large."""
    return Plant("outlier_batch", 1, batch=lambda t, i, b: (b[0] * size, b[1]))


def foreign(size: float) -> Plant:
    """Data of another kind, for `size` steps."""

    def batch(training: Training, step: int, batch: Batch) -> Batch:
        inputs, targets = training.task.strange
        rows = torch.randint(len(inputs), (len(batch[0]),), generator=generator(training, step))
        return inputs[rows], targets[rows]

    return Plant("outlier_batch", whole(size), batch=batch)


def few_bad(count: int, spoil: str) -> Callable[[float], Plant]:
    """Returns the plant of some bad examples among good ones: the first `count` of the batch; `size` scales inputs."""

    def make(size: float) -> Plant:
        def batch(training: Training, step: int, batch: Batch) -> Batch:
            inputs, targets = batch[0].clone(), batch[1].clone()
            bad = slice(0, count)
            if training.task.text:
                noise = random_like((inputs[bad], targets[bad]), generator(training, step))
                inputs[bad], targets[bad] = noise
            else:
                if spoil == "labels":
                    targets[bad] = (targets[bad] + 1) % 10 if training.task.classes else 1 - targets[bad]
                inputs[bad] = inputs[bad] * size
            order = torch.randperm(len(inputs), generator=generator(training, step + 10**6))
            training.planted[step] = sorted(torch.argsort(order)[:count].tolist())
            return inputs[order], targets[order]

        return Plant("outlier_batch", 1, batch=batch, rows=count)

    return make


# ---- unexplained


def misread(size: float) -> Plant:
    """The number that is reported is e^`size` times too large; the training is none the wiser."""
    return Plant("unexplained", reported=lambda t, i, loss: loss * math.exp(size))


def heavy_tails(size: float) -> Plant:
    """All that is reported has noise of heavy tails, and one number lies `size` above."""

    def reported(training: Training, step: int, loss: float) -> float:
        noise = random.Random(f"{training.seed} {step} tail")
        tail = abs(noise.gauss(0, 0.02)) / max(noise.random(), 1e-3) ** 0.5
        return loss * math.exp(size if step == training.at else tail)

    return Plant("unexplained", steps=-1, reported=reported)


def other_loss(size: float) -> Plant:
    """For `size` steps the loss of other data is reported, from an evaluation."""

    def reported(training: Training, step: int, loss: float) -> float:
        inputs, targets = training.task.strange
        rows = torch.randint(len(inputs), (32,), generator=generator(training, step))
        with torch.no_grad():
            return float(training.task.loss((inputs[rows], targets[rows])))

    return Plant("unexplained", whole(size), reported=reported)
