"""What made a spike: curvature, noise, or noise that curvature near its edge amplified; found out by training again.

It does not rest on the monitor's schedule: where that saw no chi above 1, chi is measured again, often, by `edge`.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import foreshock
from forecast_cases import Case, Training
from forecast_score import FACTOR, Spike, spikes

BEFORE = 60  # steps before the trigger from which a spike is trained again ...
AFTER = 20  # ... and for how many beyond it
OFTEN = 5  # steps between readings of chi meanwhile
SAFE = 0.8  # chi that the lower learning rate leaves
ECHO = 30  # steps after a disturbance to which its spike belongs


def judged(case: Case, seed: int, losses: Sequence[float], chis: Mapping[int, float]) -> list[Spike]:
    """Returns the spikes in the losses with their causes.

    Where every step sees all the data and nothing disturbs it, a spike at whose rise chi was above 1 is curvature's.
    All others are trained again from 60 steps before their trigger, with the learning rate cut so far that chi is at
    most .8. A spike was curvature's if it is gone then and chi had passed 1; if chi had not, noise was amplified near
    the edge ("mixed", counted neither as missed nor as false). One that stays, at which chi was below .8 anyway, or
    that follows a disturbance is noise, whatever that was.

    Args:
        case: what was trained.
        seed: with which seed.
        losses: over all the data, one a step.
        chis: step -> chi, as the monitor read it.
    """
    found = spikes(losses)
    steady = not case.drawn and not case.disturbance and case.lr is None
    causes, doubtful = {}, {}
    for spike in found:
        near = [chi for step, chi in chis.items() if spike.trigger - BEFORE <= step <= spike.peak]
        if any(0 <= spike.trigger - at <= ECHO for at in case.at):
            causes[spike.trigger] = "noise"
        elif steady and max(near, default=0.0) > 1:
            causes[spike.trigger] = "curvature"
        else:
            doubtful[spike.trigger] = max(near, default=0.0)
    causes |= _tried(Training(case, seed), doubtful, steady) if doubtful else {}
    return [replace(spike, cause=causes[spike.trigger]) for spike in found]


def _tried(training: Training, doubtful: Mapping[int, float], steady: bool) -> dict[int, str]:
    """Returns trigger -> cause, from trigger -> the largest chi that was seen before it."""
    causes = {}
    for step in range(max(doubtful) + 1):
        for trigger, seen in doubtful.items():
            if max(0, trigger - BEFORE) == step:
                kept = training.snapshot()
                most = max(seen, _largest_chi(training, step, trigger))
                training.restore(kept)
                if steady and most > 1:
                    causes[trigger] = "curvature"
                    continue
                cured = most > SAFE and not _rises(training, step, trigger + AFTER, SAFE / most)
                training.restore(kept)
                causes[trigger] = "noise" if not cured else "curvature" if most > 1 else "mixed"
        training.advance(step)
    return causes


def _largest_chi(training: Training, first: int, trigger: int) -> float:
    most = 0.0
    for step in range(first, trigger + 1):
        if (trigger - step) % OFTEN == 0 and step > 0:
            loss = training.problem.loss(training.problem.data)
            if math.isfinite(loss.detach()):
                most = max(most, float(foreshock.edge(loss, training.optimizer).chi))
        training.advance(step)
    return most


def _rises(training: Training, first: int, last: int, cut: float) -> bool:
    """Returns whether the loss rises by `FACTOR` from its least, with the learning rate times `cut`."""
    least = math.inf
    for step in range(first, min(training.case.steps, last)):
        loss = training.whole()
        if not loss < FACTOR * least:
            return True
        least = min(least, loss)
        training.advance(step, cut=cut)
    return False
