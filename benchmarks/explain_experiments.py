"""The experiments on a planted run while its training is alive: replay, attribution, and who finds the bad examples."""

from __future__ import annotations

import copy
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

RISE = 0.02  # of the next batch's loss by a step, from which there is something to be guilty of
PART = 0.25  # of an equal share, from which a row did it


def replayed(monitor: foreshock.Monitor, training: Any, event: Event) -> str:
    """Replays an event, the finding kept with the run; returns why it could not be, or ""."""
    try:
        foreshock.replay(monitor, event, training.advance)
    except ForeshockError as error:
        return str(error)
    except (RuntimeError, ValueError) as error:  # of a loop that cannot go through its own surgery twice
        return f"the loop failed: {error}"
    return ""


class Suspects:
    """The bad examples of one batch, looked for by several means, while the training is at its step.

    Two questions are asked. Who carries the rise of this batch's own loss: those planted rows do whose excess over the
    batch's usual loss is at least a quarter of their share. And who, by the step, harmed the next batch, which is good:
    the planted rows without each of which the step, taken again, leaves a quarter of its share less; none where the
    next batch's loss rose by less than `RISE`. Found is the share of them among as many top ones: by `loss` before the
    step, by `gradient` norm, by `attribute_event`, and among the culprits of the step by `attribute`.
    """

    def __init__(self, training: Training, batch: Batch) -> None:
        self.training, self.batch, self.planted = training, batch, training.planted[training.at]
        self.kept = copy.deepcopy([each.state_dict() for each in _parts(training)])
        each = training.task.each(batch)
        params = [p for p in training.model.parameters() if p.requires_grad]
        self.norms = []
        for loss in each:
            grads = torch.autograd.grad(loss, params, retain_graph=True)
            self.norms.append(math.sqrt(sum(float(g.square().sum()) for g in grads)))
        self.losses = each.detach().tolist()
        good = [loss for i, loss in enumerate(self.losses) if i not in self.planted]
        excess = {i: self.losses[i] - sum(good) / len(good) for i in self.planted}
        part = sum(excess.values()) / len(excess)
        self.carriers = [i for i, more in excess.items() if more > PART * part > 0]
        self.facts: dict[str, Any] = {"planted": len(self.planted), "carriers": len(self.carriers)}

    def step(self, taken: capture) -> None:
        """Attributes what the step did to the next batch, and finds out by leaving rows out who did it."""
        training, after = self.training, self.training.draw(self.training.at + 1)[0]
        told = attribute(
            lambda: training.task.each(after), taken.params, taken.before, taken.after, names=training.model,
            optimizer=taken, culprit_loss=lambda: training.task.each(self.batch),
        )  # fmt: skip
        assert told.culprits is not None
        rise = told.measured
        self.facts |= {"rise": rise / told.loss, "completeness": told.completeness, "coverage": told.coverage}
        whole = self._without([], after)
        saved = {i: whole - self._without([i], after) for i in self.planted}
        self.facts["all_saved"] = (whole - self._without(self.planted, after)) / rise
        guilty = [i for i, less in saved.items() if less > PART * rise / len(saved)] if rise > RISE * told.loss else []
        self.facts["guilty"] = len(guilty)
        if guilty:
            self.facts["of_step"] = {
                "culprits": found(told.culprits.tolist(), guilty), "gradient": found(self.norms, guilty),
                "loss": found(self.losses, guilty),
            }  # fmt: skip

    def event(self, monitor: foreshock.Monitor, event: Event) -> None:
        """Attributes the event, as a user would, without being told a step."""
        try:
            told = attribute_event(monitor, event, self.training.advance, self.training.task.each)
        except ForeshockError as error:
            self.facts["event_refused"] = str(error)
            return
        self.facts |= {"event_step": told.step, "from_step": told.from_step, "from_batch": told.from_batch}
        if self.carriers:
            wanted = {(self.training.at, row) for row in self.carriers}
            self.facts["of_event"] = {
                "culprits": len(wanted & set(told.blamed(len(wanted)))) / len(wanted),
                "gradient": found(self.norms, self.carriers), "loss": found(self.losses, self.carriers),
            }  # fmt: skip

    def _without(self, rows: Sequence[int], after: Batch) -> float:
        """Returns the loss of the next batch after the step, taken again without these rows."""
        training = self.training
        other = Training(*training.made, training.plant, training.at)
        for part, state in zip(_parts(other), copy.deepcopy(self.kept), strict=True):
            part.load_state_dict(state)
        keep = [i for i in range(len(self.losses)) if i not in rows]
        other.advance((self.batch[0][keep], self.batch[1][keep]))
        with torch.no_grad():
            return float(other.task.loss(after))


def _parts(training: Training) -> tuple[Any, ...]:
    return training.model, training.optimizer, training.scheduler


def found(values: Sequence[float], wanted: Sequence[int]) -> float:
    """Returns the share of the wanted rows among as many of the highest values.

    >>> found([0.1, 3.0, 0.2, 2.0], [1, 2])
    0.5
    """
    order = sorted(range(len(values)), key=lambda i: -values[i])
    return len(set(order[: len(wanted)]) & set(wanted)) / len(wanted)
