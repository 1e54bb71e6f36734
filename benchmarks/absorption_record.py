"""Trains the cases under a monitor and keeps what was recorded, so that detectors can be scored without training again.

A trace is a folder: `run/`, the monitor's own run directory, and `truth.json` with the loss of every step over all the
data and the processor time.
"""

from __future__ import annotations

import json
import math
import os
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from absorption_cases import Case, Training
from absorption_score import KINDS
from foreshock.detect import scan
from foreshock.monitor import Monitor
from foreshock.run import Run


@dataclass(frozen=True, slots=True)
class Trace:
    """A case as it was watched once.

    Attributes:
        case, seed: what was trained.
        run: what the monitor recorded.
        losses: over all the data, one a step.
        seconds: processor time, the monitor's included.
    """

    case: Case
    seed: int
    run: Run
    losses: Sequence[float]
    seconds: float

    @property
    def name(self) -> str:
        return f"{self.case.name}, {self.case.arm}, seed {self.seed}"

    def most(self, name: str) -> float:
        """Returns the largest reading of a signal of the softmax, NaN where there is none."""
        signal = f"softmax_{name}"
        return max(self.run.measured(signal)[1].tolist(), default=math.nan) if signal in self.run else math.nan

    def warnings(self) -> dict[str, list[tuple[int, float]]]:
        """Returns when warnings of the shipped detectors stood: kind -> (raised, end), from a scan of the record."""
        found: dict[str, list[tuple[int, float]]] = {kind: [] for kind in KINDS}
        for event in scan(self.run):
            if event.kind in ("absorbing", "inflating") or event.signal == "softmax_sensitivity":
                found[event.kind].append((event.raised, math.inf if event.end is None else event.end))
        return found


def folder(cache: Path, case: Case, seed: int) -> Path:
    """Returns where a trace is kept."""
    plain = "".join(c if c.isalnum() else "-" for c in case.name.replace(", ", "-"))
    return cache / f"{plain}-seed-{seed}" / case.arm


def trace(case: Case, seed: int, cache: Path) -> Trace:
    """Returns a trace, from the cache or trained now.

    Args:
        case: what to train.
        seed: of the initial values and the batches.
        cache: folder that holds the traces.
    """
    place = folder(cache, case, seed)
    kept = place / "truth.json"
    if not kept.exists():
        shutil.rmtree(place, ignore_errors=True)
        place.mkdir(parents=True)
        truth = _record(case, seed, place / "run")
        partial = kept.with_suffix(f".{os.getpid()}")
        partial.write_text(json.dumps(truth), encoding="utf-8")
        partial.replace(kept)
    truth = json.loads(kept.read_text(encoding="utf-8"))
    return Trace(case, seed, Run.load(place / "run"), truth["losses"], truth["seconds"])


def _record(case: Case, seed: int, place: Path) -> dict[str, object]:
    begun = time.process_time()
    training = Training(case, seed)
    with Monitor(training.model, training.optimizer, run=place) as monitor:
        monitor.annotate(title=f"{case.name}, {case.arm}", seed=seed)
        losses = [training.advance(step, monitor.observe) for step in range(case.steps)]
    return {"losses": losses, "seconds": time.process_time() - begun}
