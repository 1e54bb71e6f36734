"""Runs a demo training with a monitor attached."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from foreshock.demo.scenario import Scenario, train
from foreshock.errors import RunError
from foreshock.monitor import Monitor
from foreshock.run import Event, Run
from foreshock.threads import one_thread

__all__ = ["Outcome", "make_room", "watch"]

Live = Callable[[int, int, float, int], None]
"""Called as (steps done, steps in all, current loss, events so far), now and then."""

LIVE_EVERY = 50  # steps between two calls: a few dozen a second on these networks


@dataclass(frozen=True, slots=True)
class Outcome:
    """A watched training.

    Attributes:
        scenario: which one.
        run: what was recorded.
        events: what was found while it ran.
        seconds: wall time, watching included.
    """

    scenario: Scenario
    run: Run
    events: list[Event]
    seconds: float


def watch(scenario: Scenario, seed: int, place: Path, live: Live | None = None) -> Outcome:
    """Trains a scenario with a monitor attached, its run directory at `place`."""
    training = scenario.build(seed)
    started = time.perf_counter()
    done = 0
    most = scenario.max_overhead
    with one_thread(), Monitor(training.model, training.optimizer, run=place, max_overhead=most) as monitor:
        monitor.annotate(
            title=scenario.title, mechanism=scenario.cause, subtitle=scenario.mechanism, demo=scenario.name,
            source=scenario.source, seed=str(seed),
        )

        def observe(loss: Tensor) -> None:
            nonlocal done
            monitor.observe(loss)
            if live is not None and done % LIVE_EVERY == 0:
                live(done, training.steps, float(loss.detach()), len(monitor.events))
            done += 1

        losses = train(training, observe)
    seconds = time.perf_counter() - started
    events = list(monitor.events)
    if live is not None:
        live(done, training.steps, float(losses[-1]), len(events))
    return Outcome(scenario, Run.load(place), events, seconds)


def make_room(place: Path) -> None:
    """Removes the run of an earlier demo.

    Raises:
        RunError: something else is there; it is left alone.
    """
    if not place.exists():
        return
    try:
        earlier = Run.load(place).meta
    except RunError:
        earlier = {}
    if "demo" not in earlier:
        raise RunError(f"{place} exists and is not from an earlier demo; name another folder with --runs")
    shutil.rmtree(place)
