"""Trains the cases under a monitor and keeps what was recorded, so that detectors can be scored without training again.

A trace is a folder: `run/`, the monitor's own run directory, and `truth.json` with the loss of every step over all the
data and the spikes in it, each with its cause.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from forecast_cases import Case, Training
from forecast_score import FACTOR, Spike, spikes
from foreshock.monitor import Monitor
from foreshock.run import Run

BEFORE = 60  # steps before the trigger at which a spike is trained again with a lower learning rate ...
AFTER = 20  # ... and for how many beyond it
SAFE = 0.8  # chi that the lower learning rate leaves
ECHO = 30  # steps after a disturbance to which its spike belongs
DENSE, DEFAULT = "dense", "default"


@dataclass(frozen=True, slots=True)
class Trace:
    """A case as it was watched once.

    Attributes:
        case, seed: what was trained.
        run: what the monitor recorded.
        losses: over all the data, one a step.
        spikes: in those losses, with their causes.
        seconds: processor time of a monitored and of an unmonitored training, taken in turns; zeros where not measured.
    """

    case: Case
    seed: int
    run: Run
    losses: Sequence[float]
    spikes: Sequence[Spike]
    seconds: tuple[float, float] = (0.0, 0.0)

    @property
    def name(self) -> str:
        return f"{self.case.name}, seed {self.seed}"


def folder(cache: Path, case: Case, seed: int, mode: str) -> Path:
    """Returns where a trace is kept."""
    plain = "".join(c if c.isalnum() else "-" for c in case.name.replace(", ", "-"))
    return cache / case.split / f"{plain}-seed-{seed}" / mode


def trace(case: Case, seed: int, cache: Path, mode: str = DENSE) -> Trace:
    """Returns a trace, from the cache or trained now.

    Args:
        case: what to train.
        seed: of the initial values and the batches.
        cache: folder that holds the traces.
        mode: "dense": all readings that the schedule wants, whatever they cost; "default": a monitor as it comes,
            beside an unmonitored twin that takes turns with it.
    """
    place = folder(cache, case, seed, mode)
    kept = place / "truth.json"
    if not kept.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        truth = _record(case, seed, place / "run", mode)
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(truth), encoding="utf-8")
        partial.replace(kept)
    truth = json.loads(kept.read_text(encoding="utf-8"))
    found = [Spike(**each) for each in truth["spikes"]]
    return Trace(case, seed, Run.load(place / "run"), truth["losses"], found, tuple(truth["seconds"]))


def _record(case: Case, seed: int, place: Path, mode: str) -> dict[str, object]:
    training, losses = Training(case, seed), []
    twin = Training(case, seed) if mode == DEFAULT else None
    settings = {"max_overhead": math.inf} if mode == DENSE else {}
    spent, plain, begun = 0.0, 0.0, time.process_time()
    with Monitor(training.model, training.optimizer, run=place, **settings) as monitor:
        monitor.annotate(title=case.name, seed=seed)
        spent += time.process_time() - begun
        for step in range(case.steps):
            whole = training.whole() if case.drawn else math.nan
            begun = time.process_time()
            seen = training.advance(step, monitor.observe)
            turn = time.process_time()
            spent += turn - begun
            losses.append(whole if case.drawn else seen)
            if twin is not None:
                twin.advance(step)
                plain += time.process_time() - turn
        begun = time.process_time()
    spent += time.process_time() - begun
    chis = dict(zip(*(each.tolist() for each in Run.load(place).measured("chi")), strict=True))
    truth = judged(case, seed, losses, chis)
    return {"losses": losses, "spikes": [asdict(each) for each in truth], "seconds": [spent, plain]}


def judged(case: Case, seed: int, losses: Sequence[float], chis: dict[int, float]) -> list[Spike]:
    """Returns the spikes with their causes.

    Where every step sees all the data and nothing disturbs it, nothing but curvature can raise the loss. Else the spike
    is trained again from 60 steps before its trigger, with the learning rate cut so far that chi is at most .8. It was
    curvature's if it is gone then and chi had passed 1; if chi had not, noise was amplified near the edge ("mixed",
    counted neither as missed nor as false). One that stays, that chi never neared, or that follows a disturbance is
    noise.
    """
    found = spikes(losses)
    if not case.drawn and not case.disturbance and case.lr is None:
        return found
    doubtful: dict[int, float] = {}  # step to go back to -> factor on the learning rate
    causes = {}
    for spike in found:
        if any(0 <= spike.trigger - at <= ECHO for at in case.at):
            causes[spike.trigger] = "noise"
            continue
        start = max(0, spike.trigger - BEFORE)
        near = [chi for step, chi in chis.items() if start <= step <= spike.peak]
        most = max(near, default=chis[max((step for step in chis if step < start), default=min(chis))] if chis else 0.0)
        if most <= SAFE:
            causes[spike.trigger] = "noise"
        else:
            doubtful[spike.trigger] = SAFE / most
    for trigger, cured in _again(case, seed, doubtful).items():
        causes[trigger] = "noise" if not cured else "curvature" if SAFE / doubtful[trigger] > 1 else "mixed"
    return [replace(spike, cause=causes[spike.trigger]) for spike in found]


def _again(case: Case, seed: int, cuts: dict[int, float]) -> dict[int, bool]:
    """Trains again, before each of these triggers with a lower learning rate; returns whether no spike came then."""
    cured: dict[int, bool] = {}
    if not cuts:
        return cured
    training = Training(case, seed)
    for step in range(max(cuts) + 1):
        for trigger in [each for each in cuts if max(0, each - BEFORE) == step]:
            kept, least, risen = training.snapshot(), math.inf, False
            for ahead in range(step, min(case.steps, trigger + AFTER)):
                loss = training.whole()
                risen = risen or not loss < FACTOR * least
                least = min(least, loss)
                training.advance(ahead, cut=cuts[trigger])
            cured[trigger] = not risen
            training.restore(kept)
        training.advance(step)
    return cured
