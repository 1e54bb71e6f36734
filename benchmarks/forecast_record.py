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
from dataclasses import asdict, dataclass
from pathlib import Path

from forecast_cases import Case, Training
from forecast_causes import judged
from forecast_score import Spike
from foreshock.monitor import Monitor
from foreshock.run import Run

DENSE, DEFAULT = "dense", "default"


@dataclass(frozen=True, slots=True)
class Trace:
    """A case as it was watched once.

    Attributes:
        case, seed: what was trained.
        run: what the monitor recorded.
        losses: over all the data, one a step.
        spikes: in those losses, with their causes; of dense traces alone, since the training is the same to the bit.
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
    run = Run.load(place)
    chis = dict(zip(*(each.tolist() for each in run.measured("chi")), strict=True)) if "chi" in run else {}
    truth = judged(case, seed, losses, chis) if mode == DENSE else []
    return {"losses": losses, "spikes": [asdict(each) for each in truth], "seconds": [spent, plain]}
