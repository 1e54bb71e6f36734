"""Detects the early sign: a free signal, above all the gradient norm, leaves its range before the loss does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.switched import Switched
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import CHANGE_TO_SIGMA, DUST, Baseline, tail_bound

# Heights are logarithms of the ratio to the recent level; z is in units of the usual prediction error.
SUSPECT, SUSPECT_Z = 0.25, 3.0  # what waits for the next records to tell
LEAP, LEAP_Z = 1.0, 6.0  # what one record must reach alone (2.7 times the level)
CLIMB, CLIMB_Z = 0.8, 4.0  # what a record must reach that follows a suspect ...
CLIMB_STEP = 0.2  # ... and by how much it must exceed all of them: a level that changed once does not climb on
FALSE_RATE = 1e-4  # chance per record that noise alone passes the tail bound asked of a lone leap
WARM, EARLY = 8, 5.0  # residuals known before anything is judged; z is (1 + EARLY / n) times higher while n are known
HELD = 12  # suspects in a row that are a new level
QUIET = 3.0  # the loss is calm within so many standard deviations of its recent level
CALM = 5  # records back in range that end an event


class Precursor:
    """Raises an event when a positive signal leaps or climbs far above its recent level while the loss is still calm.

    A leap at the very record where the loss leaps is no early sign and raises nothing; `Spike` reports it. A change of
    level that stays (a smaller batch, say) is learnt after 12 records, or ends the event after `longest`. After a
    declared switch of the batch the level is learnt anew from 12 records, of which only what the noise cannot explain
    is raised.

    Event data: "baseline" (of the signal), "scale" (of its logarithm), "ratio" (largest value over the baseline).
    """

    def __init__(self, signal: str = "grad_norm", *, half: int = 16, memory: int = 256, longest: int = 60) -> None:
        self.signal = signal
        self.longest = longest
        self._base = Baseline(half, memory)
        self._losses: deque[float] = deque(maxlen=32)
        self._held: list[tuple[int, float, float]] = []  # suspects: (step, logarithm, residual)
        self._switched, self._allowed = Switched(wait=HELD), 0.0
        self._event: Event | None = None
        self._calm = 0
        self._tail: list[float] = []
        self._told = 0.0

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns the event when it is raised, when it grew twofold, and when it ended."""
        settling, loss = self._switched.update(record), record.values.get("loss")
        if "batch_switched" in record.values:
            self._allowed = math.log(self._switched.noisier)
            self._release(self._base.scale())
            self._base.widen(self._switched.noisier)
        if is_finite(loss):
            self._losses.append(loss)
        value = record.values.get(self.signal)
        if not is_finite(value) or value <= 0.0:
            return ()
        y, base = math.log(value), self._base
        if self._event is not None:
            return self._follow(self._event, record.step, y, value)
        residual = base.residual(y)
        if settling:
            return self._settle(record.step, y, value, residual)
        if residual < SUSPECT or len(base) < WARM or residual < SUSPECT_Z * (scale := base.scale()):
            if self._held:
                self._release(base.scale())
            base.admit(y, residual)
            return ()
        if self._leaps(residual, scale) and self._loss_is_calm():
            return (self._raise(record.step, value, residual, scale),)
        self._held.append((record.step, y, residual))
        if len(self._held) == HELD:
            base.restart([item[1] for item in self._held])
            self._held.clear()
        return ()

    def _settle(self, step: int, y: float, value: float, residual: float) -> Sequence[Event]:
        """Takes a record right after a switch of the batch: only a leap beyond the noise of the new one is raised."""
        scale, over = self._base.scale(), residual - self._allowed
        self._held.append((step, y, residual))
        least = max(LEAP, LEAP_Z * (1.0 + EARLY / max(1, len(self._base))) * scale)
        if len(self._base) >= WARM and over >= least and self._loss_is_calm():
            self._held = self._held[-1:]
            return (self._raise(step, value, residual, scale),)
        if len(self._held) >= HELD:
            self._base.restart([item[1] for item in self._held])
            self._held.clear()
        return ()

    def finish(self) -> Sequence[Event]:
        """Returns the open event, ended at its last abnormal record."""
        return () if self._event is None else (self._event,)

    def _leaps(self, residual: float, scale: float) -> bool:
        few = 1.0 + EARLY / len(self._base)
        if self._held:
            before = max(item[2] for item in self._held)
            return residual >= max(CLIMB, CLIMB_Z * few * scale, before + CLIMB_STEP)
        return residual >= max(LEAP, LEAP_Z * few * scale, tail_bound(self._base.residuals, FALSE_RATE))

    def _loss_is_calm(self) -> bool:
        losses = list(self._losses)
        if len(losses) < WARM:
            return True
        past = losses[:-1]
        changes = sorted(abs(b - a) for a, b in pairwise(past))
        level = sorted(past[-8:])[4]
        return losses[-1] - level <= QUIET * CHANGE_TO_SIGMA * changes[len(changes) // 2]

    def _release(self, scale: float) -> None:
        """Admits the suspects: the level takes them winsorised, the noise learns them as they are."""
        limit = max(SUSPECT_Z * scale, SUSPECT)
        for _, y, residual in self._held:
            self._base.admit(y - max(0.0, residual - limit), residual)
        self._held.clear()

    def _raise(self, step: int, value: float, residual: float, scale: float) -> Event:
        level = math.exp(self._base.level)
        onset = self._held[0][0] if self._held else step
        data = {"baseline": level, "scale": scale, "ratio": value / level}
        severity = residual / max(scale, DUST)
        self._event = Event("precursor", step, onset, step, step, value - level, severity, self.signal, data)
        self._calm, self._tail, self._told = 0, [], value - level
        self._held.clear()
        return replace(self._event, end=None)

    def _follow(self, event: Event, step: int, y: float, value: float) -> Sequence[Event]:
        self._tail = [*self._tail[1 - self._base.half :], y]
        baseline, scale = event.data["baseline"], event.data["scale"]
        rise = y - math.log(baseline)
        if rise <= max(0.3, SUSPECT_Z * scale):
            self._calm += 1
            if self._calm < CALM:
                return ()
            return self._close(event, self._tail[-CALM:])
        self._calm = 0
        event = replace(event, end=step)
        if value - baseline > event.height:
            data = {**event.data, "ratio": value / baseline}
            severity = rise / max(scale, DUST)
            event = replace(event, peak=step, height=value - baseline, severity=severity, data=data)
        self._event = event
        if step - event.raised >= self.longest:
            return self._close(event, self._tail)
        if event.height > 2.0 * self._told:
            self._told = event.height
            return (replace(event, end=None),)
        return ()

    def _close(self, event: Event, values: Sequence[float]) -> Sequence[Event]:
        self._event = None
        self._base.restart(values)
        return (event,)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "base": self._base.state_dict(), "losses": list(self._losses), "held": [list(item) for item in self._held],
            "event": pack(self._event), "calm": self._calm, "tail": list(self._tail), "told": self._told,
            "switched": self._switched.state_dict(), "allowed": self._allowed,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._base.load_state_dict(state["base"])
        self._losses = deque(state["losses"], maxlen=32)
        self._held = [(int(step), y, residual) for step, y, residual in state["held"]]
        self._switched.load_state_dict(state.get("switched", {"wait": 0}))
        self._allowed = float(state.get("allowed", 0.0))
        self._event, self._calm = unpack(state["event"]), int(state["calm"])
        self._tail, self._told = list(state["tail"]), float(state["told"])
