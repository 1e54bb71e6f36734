"""What made a spike that nobody planted, measured without any rule: curvature swapped, and trainings run again.

Curvature: chi is measured on all the data every few steps by `foreshock.edge`. Between the calmest reading before the
spike and the first of those above 1 that lead to it, ln chi grows by what the weights W of the optimizer and the
Hessian H have done, which are told apart by swapping them: chi of the later W with the earlier H, and the other way
round, each measured (the Shapley split of two). And the spike must be gone where the training goes on from before it
with a learning rate that keeps chi at .8. Softmax: the spike must be gone in a training from the same start with exact
gradients.
"""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

import foreshock
from explain_curved import Alone, Curved
from explain_score import KINDS
from foreshock.detect import scan
from foreshock.errors import ForeshockError
from foreshock.run import Event, Run

BEFORE = 200  # steps before the onset from which chi is measured
OFTEN = 6  # steps between readings
TRIES = 4  # spikes of a training that are looked into
RISE = 0.3  # of a loss, from which a spike is worth it
AFTER = 40  # steps that are trained beyond the end of the event
SAFE = 0.8  # chi that the lower learning rate leaves
GROWN = 0.04  # growth of ln chi below which there is nothing to split
SURE = 0.62  # share of the growth from which it has one cause


@dataclass(frozen=True, slots=True)
class Known:
    """A spike whose cause was measured.

    Attributes:
        cause: its name.
        event: the spike.
        at: step at which it began: chi passed 1 there, or the onset.
        last: step up to which the training is of interest.
        discarded: spikes before it that had no single cause.
        facts: what the cause rests on.
    """

    cause: str
    event: Event
    at: int
    last: int
    discarded: int
    facts: dict[str, Any]


def find(case: Curved, seed: int) -> Known | None:
    """Returns the first spike of a training that has one cause; None where none of its first few has."""
    training, losses, events = Alone(case, seed), list[float](), list[Event]()
    while len(losses) < case.steps:
        losses += [float(training.advance(training.draw(step))) for step in range(len(losses), len(losses) + 100)]
        found = scan(Run.from_arrays({"step": list(range(len(losses))), "loss": losses}))
        events = [each for each in found if each.kind in KINDS]
        if sum(map(_worth, events)) > TRIES:
            break
    ends, discarded = -1, 0
    for event in events:
        if _worth(event) and discarded < TRIES:
            if case.family == "softmax":
                known = ("softmax_absorption", {}) if softmax(case, seed, event) else None
            else:
                known = _measured(case, seed, event, ends)
            if known is not None:
                cause, facts = known
                last = min((event.peak if event.end is None else event.end) + AFTER, len(losses) - 1)
                return Known(cause, event, facts.get("crossed", event.onset), last, discarded, facts)
            discarded += 1
        ends = event.peak if event.end is None else event.end
    return None


def _measured(case: Curved, seed: int, event: Event, earlier: int) -> tuple[str, dict[str, Any]] | None:
    """Returns what `curvature` does; None also where chi cannot be measured, as where products overflow."""
    try:
        return curvature(case, seed, event, earlier)
    except ForeshockError:
        return None


def _worth(event: Event) -> bool:
    return not event.height < RISE * event.data.get("baseline", 0.0)


def curvature(case: Curved, seed: int, event: Event, earlier: int) -> tuple[str, dict[str, Any]] | None:
    """Returns the cause of an event of a training, with what it rests on; None where it is mixed or none of both.

    Args:
        case, seed: what was trained.
        event: one of its spikes.
        earlier: step up to which earlier events last.
    """
    first = max(earlier + 1, event.onset - BEFORE, 2)
    training = Alone(case, seed)
    readings: list[tuple[int, float, list[Tensor], list[Tensor]]] = []
    states: dict[int, Any] = {}
    for step in range(event.peak + 1):
        if step >= first and (step - first) % OFTEN == 0:
            loss = training.loss(training.data)
            if not math.isfinite(float(loss.detach())):
                break
            found = foreshock.edge(loss, training.optimizer, forms=False, tol=0.03)
            weights = [each.clone() for each in found.weights.tensors]  # type: ignore[union-attr]
            readings.append((step, float(found.chi), [p.detach().clone() for p in found.params], weights))
            states[step] = _state(training)
        training.advance(training.draw(step))
    above = [i for i, (step, chi, _, _) in enumerate(readings) if chi > 1 and step <= event.peak]
    if not above:
        return None
    cross = above[-1]
    while cross > 0 and readings[cross - 1][1] > 1:
        cross -= 1
    start = min(range(cross + 1), key=lambda i: readings[i][1])
    if math.log(readings[cross][1] / readings[start][1]) < GROWN:
        return None
    share = _share(training, readings[start][2:], readings[cross][2:])
    most = max(chi for step, chi, _, _ in readings[start:])
    cured = _calm(training, states[readings[start][0]], readings[start][0], event, SAFE / most)
    facts = {
        "crossed": readings[cross][0], "from": readings[start][0], "chi": [readings[start][1], readings[cross][1]],
        "share_of_weights": share, "cured_by_lr": cured,
    }  # fmt: skip
    if not cured or 1 - SURE < share < SURE:
        return None
    return ("preconditioner" if share >= SURE else "landscape"), facts


def softmax(case: Curved, seed: int, event: Event) -> bool:
    """Returns whether an event is gone where the loss has exact gradients."""
    training = Alone(case, seed, exact=True)
    losses = [float(training.advance(training.draw(step))) for step in range(event.peak + 50)]
    found = scan(Run.from_arrays({"step": list(range(len(losses))), "loss": losses}))
    return not any(each.kind in KINDS and each.height > 0.3 * event.height for each in found)


def _share(
    training: Alone, first: tuple[list[Tensor], list[Tensor]], last: tuple[list[Tensor], list[Tensor]]
) -> float:
    """Returns the share of the growth of ln chi from one point to another that the weights W have made."""
    chi = [[_chi(training, place, weights) for place in (first[0], last[0])] for weights in (first[1], last[1])]
    if min(min(row) for row in chi) <= 0:
        return math.nan
    (aa, ab), (ba, bb) = [[math.log(each) for each in row] for row in chi]
    return 0.5 * ((ba - aa) + (bb - ab)) / (bb - aa)


def _chi(training: Alone, place: list[Tensor], weights: list[Tensor]) -> float:
    params = list(training.model.parameters())
    kept = [p.detach().clone() for p in params]
    with torch.no_grad():
        for p, value in zip(params, place, strict=True):
            p.copy_(value)
    hessian = foreshock.Hessian(lambda: training.loss(training.data), params)
    found = foreshock.eigsh(hessian.conditioned(weights), 1, tol=1e-2, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        for p, value in zip(params, kept, strict=True):
            p.copy_(value)
    return float(found.values[0])


def _state(training: Alone) -> Any:
    return copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))


def _calm(training: Alone, state: Any, step: int, event: Event, cut: float) -> bool:
    """Returns whether the event stays away from a state on, with the learning rate times `cut`."""
    training.model.load_state_dict(state[0])
    training.optimizer.load_state_dict(copy.deepcopy(state[1]))
    for group in training.optimizer.param_groups:
        group["lr"] *= min(cut, 1.0)
    least, rise = math.inf, 0.0
    for at in range(step, event.peak + 20):
        loss = float(training.advance(training.draw(at)))
        least = min(least, loss)
        rise = max(rise, loss - least) if math.isfinite(loss) else math.inf
    return rise < 0.3 * event.height
