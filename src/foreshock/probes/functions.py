"""Calls the probes that are functions of a step, and those that look at the live loss, within what they may cost."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from torch import Tensor

from foreshock.curvature import Edge
from foreshock.probes.base import Moment, Step
from foreshock.run import StepRecord

CREDIT_SECONDS, CREDIT_STEPS = 120.0, 10_000
"""How much of the training to come lends its share of passes in danger, the longer of the two: at the default of 3 %,
3.6 seconds or the time of 300 steps. A reading takes some ten steps' time whatever the network, so that without credit
the edge would have been passed before there was time for a second look; a long training does not notice."""

Dropped = Callable[[Any, Exception], None]
Keep = Callable[[str, Tensor | float], None]


class Functions:
    """The probes outside the sweep.

    Args:
        probes: functions of a `Step`; see `foreshock.probes.base.Probe` for what else they may have.
        every: distance, in steps, at which costly ones are run.
        max_overhead: share of the wall time that the passes of costly and live ones may take together.
        dropped: told of a probe that raised something; it is not called again.
    """

    def __init__(self, probes: list[Any], every: int, max_overhead: float, dropped: Dropped) -> None:
        self.probes = probes
        self.live = [probe for probe in probes if hasattr(probe, "observe")]
        self._every, self._max_overhead, self._dropped = every, max_overhead, dropped
        self._spent, self._steps = 0.0, 0
        self._started = time.perf_counter()

    def start(self) -> None:
        """Begins to count the wall time that shares are of."""
        self._started, self._spent, self._steps = time.perf_counter(), 0.0, 0

    @property
    def affordable(self) -> bool:
        """Whether the passes so far have taken no more than their share of the time so far."""
        return self._spent <= self._max_overhead * (time.perf_counter() - self._started)

    @property
    def on_credit(self) -> bool:
        """Whether they have taken no more than their share of the time so far and of what is to come, see above."""
        so_far = time.perf_counter() - self._started
        ahead = max(CREDIT_SECONDS, CREDIT_STEPS * (so_far - self._spent) / max(1, self._steps))
        return self._spent <= self._max_overhead * (so_far + ahead) > 0.0

    @property
    def reading(self) -> Edge | None:
        """What a live probe has read of the edge for the step that is about to be taken."""
        found = (getattr(probe, "reading", None) for probe in self.live)
        return next((each for each in found if isinstance(each, Edge)), None)

    @property
    def beside(self) -> Mapping[str, float]:
        """What live probes know beside that reading, as signals by name."""
        found: dict[str, float] = {}
        for probe in self.live:
            found |= getattr(probe, "beside", {})
        return found

    def observe(self, moment: Moment) -> None:
        """Shows a loss that waits for its backward pass to the live probes."""
        for probe in tuple(self.live):
            self._call(probe, partial(probe.observe, moment))

    def look(self, moment: Moment) -> None:
        """Shows a loss to the live probes that look on as it is differentiated, whosever it is."""
        for probe in tuple(self.live):
            if hasattr(probe, "look"):
                self._call(probe, partial(probe.look, moment), counted=False)

    def before(self, moment: Moment) -> None:
        """Shows the gradients that the optimizer is about to consume to the live probes."""
        for probe in tuple(self.live):
            self._call(probe, partial(probe.before, moment))

    def heard(self, kind: str, step: int) -> None:
        """Tells the live probes of an event that a detector has raised."""
        for probe in tuple(self.live):
            self._call(probe, partial(probe.heard, kind, step))

    def saw(self, records: Sequence[StepRecord]) -> None:
        """Shows finished records to the live probes that want to see them."""
        for probe in tuple(self.live):
            for record in records if hasattr(probe, "saw") else ():
                self._call(probe, partial(probe.saw, record), counted=False)

    @property
    def urgent(self) -> bool:
        """Whether a live probe wants its numbers with the detectors at once."""
        return any(getattr(probe, "urgent", False) for probe in self.live)

    def __call__(self, step: Step, keep: Keep) -> None:
        """Calls every probe that is due and hands on what it measured."""
        self._steps += 1
        for probe in tuple(self.probes):
            cost = getattr(probe, "cost", "own" if probe in self.live else "free")
            if cost != "costly" or (step.number % self._every == 0 and self.affordable):
                self._call(probe, partial(_measure, probe, step, keep), counted=cost != "free")

    def _call(self, probe: Any, call: Callable[[], bool | None], *, counted: bool = True) -> None:
        """Calls, and counts the time if a pass was taken."""
        begun = time.perf_counter()
        try:
            passed = call() and counted
        except Exception as error:
            passed = True
            if probe in self.probes:
                self.probes.remove(probe)
                self.live = [each for each in self.live if each is not probe]
                self._dropped(probe, error)
        if passed:
            self._spent += time.perf_counter() - begun


def _measure(probe: Any, step: Step, keep: Keep) -> bool:
    """Keeps what a probe measures; returns whether it measured anything."""
    found = probe(step)
    for name, value in found.items():
        keep(name, value)
    return bool(found)
