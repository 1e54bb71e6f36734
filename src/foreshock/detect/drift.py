"""Detects drift: the loss climbs slowly, step by step inside its noise."""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.level import Level
from foreshock.detect.planned import PlannedRise
from foreshock.detect.switched import Switched
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import DUST, Window

BLOCK = 16  # records of the short level and the lag at which its changes are taken
RISE = 0.10  # least rise, as a share of the loss (of the descent for signed losses)
Z = 8.0  # least rise, in usual changes of the short level from one block to the next
AGAIN = 2.0  # least rise, in earlier slow rises that went away by themselves
ABRUPT = 0.6  # a rise of which this share came within one block is a level change
BACK = 0.3  # a rise of which less than this share is left went away
SWIFT = 0.85  # a rise of which this share came within three blocks is a spike's, or what is left of one
KNOWN = 4  # changes of the short level known before anything is judged


class Drift:
    """Raises an event when the level of the loss (median of 64) has climbed slowly above the best it has been.

    The rise must be a tenth of the loss (of the descent, for signed losses), exceed the noise of single records (six
    times that of the level), stand out of the slow wander of this loss, and be twice any earlier slow rise that went
    away again (seasons of the data, restarts). A rise that came at once is left to `Spike`, its ring-down included.
    After the learning rate went up, or the batch was switched, nothing is judged for 200 records, and the best level is
    taken anew.

    `height` and `peak` are of the level, not of single losses. Event data: "baseline" (best level), "scale" (noise of
    single records, on the loss's scale), "wander" (usual change from block to block).
    """

    def __init__(self, signal: str = "loss", *, size: int = 64) -> None:
        self.signal = signal
        self._level = Level(size)
        self._short = Window(BLOCK)
        self._shorts: deque[float] = deque(maxlen=BLOCK)
        self._count = 0
        self._change = 0.0
        self._wander = Window(32)
        self._long: deque[float] = deque(maxlen=3 * BLOCK)
        self._swift = 0.0  # steepest three blocks since the best
        self._abrupt = self._peak = self._usual = 0.0  # steepest block, greatest rise since the best; largest past rise
        self._planned, self._switched = PlannedRise(wait=200), Switched(wait=200)
        self._was_planned = False
        self._onset = 0
        self._event: Event | None = None
        self._told = 0.0

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns the event when it is raised, when its height doubled, and when it ended."""
        risen, switched = self._planned.update(record), self._switched.update(record)
        planned = risen or switched
        value, level = record.values.get(self.signal), self._level
        if not is_finite(value):
            return ()
        if not level.scale.fits(value):
            self._refit(value)
        full = level.push(value)
        self._block(level.last)
        if not full:
            return ()
        if self._was_planned and not planned:
            level.rebase()
        self._was_planned = planned
        if self._event is not None:
            return self._follow(self._event, record.step)
        rise = level.rise
        if rise < BACK * self._peak or rise <= 0.0:
            self._forget()
            self._onset = record.step
        climbs = rise > self._peak
        self._peak = max(self._peak, rise)
        if planned or not climbs or len(self._wander) < KNOWN or rise < self._needed():
            return ()
        noise = level.noise()
        if rise < noise or self._abrupt > ABRUPT * rise + 1.5 * noise:
            return ()
        if self._swift > SWIFT * rise + 1.5 * noise:
            return ()
        data = {"baseline": level.baseline, "scale": noise, "wander": self._wander.median()}
        severity = rise / max(noise, DUST)
        step, onset = record.step, self._onset
        self._event = Event("drift", step, onset, step, step, level.height, severity, self.signal, data)
        self._told = level.height
        return (replace(self._event, end=None),)

    def _needed(self) -> float:
        return max(self._level.share(RISE), Z * self._wander.median(), AGAIN * self._usual)

    def _block(self, y: float) -> None:
        """Follows the short level: its steepest rise, and by how much its changes differ from one block to the next."""
        self._short.push(y)
        short = self._short.median()
        if len(self._shorts) == BLOCK:
            change = short - self._shorts[0]
            self._abrupt = max(self._abrupt, change)
            self._count += 1
            if self._count % BLOCK == 0:
                # the difference of two changes: a steady slope is no wander; sqrt(3) since three levels enter
                self._wander.push(abs(change - self._change) / 1.732)
                self._change = change
        self._shorts.append(short)
        if len(self._long) == 3 * BLOCK:
            self._swift = max(self._swift, short - self._long[0])
        self._long.append(short)

    def _forget(self) -> None:
        """A rise went away: a slow one is usual from now on, and what is left of it is no news."""
        left = max(0.0, self._level.rise)
        if AGAIN * self._peak < self._level.share(RISE):  # too small to matter
            self._abrupt = self._swift = 0.0
        elif self._abrupt <= ABRUPT * self._peak + 1.5 * self._level.noise():
            self._usual = max(self._usual, self._peak)
            self._abrupt = self._swift = 0.0
        else:
            self._abrupt = self._swift = left
        self._peak = left

    def _follow(self, event: Event, step: int) -> Sequence[Event]:
        level = self._level
        self._peak = max(self._peak, level.rise)
        if level.rise < 0.5 * self._peak:
            self._event = None
            level.rebase()
            self._forget()
            return (event,)
        event = replace(event, end=step)
        if level.height > event.height:
            severity = level.rise / max(event.data["scale"], DUST)
            event = replace(event, peak=step, height=level.height, severity=severity)
        self._event = event
        if event.height > 2.0 * self._told:
            self._told = event.height
            return (replace(event, end=None),)
        return ()

    def _refit(self, value: float) -> None:
        self._level.refit(value)
        self._short, self._wander = Window(BLOCK), Window(32)
        self._shorts.clear()
        self._long.clear()
        self._abrupt = self._swift = self._peak = self._usual = self._change = 0.0

    def finish(self) -> Sequence[Event]:
        """Returns the open event, ended at the last record."""
        return () if self._event is None else (self._event,)

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "level": self._level.state_dict(), "short": self._short.to_list(), "shorts": list(self._shorts),
            "long": list(self._long),
            "wander": self._wander.to_list(), "planned": self._planned.state_dict(), "event": pack(self._event),
            "switched": self._switched.state_dict(),
        } | {name: getattr(self, f"_{name}") for name in self._PLAIN}  # fmt: skip

    _PLAIN = ("count", "change", "abrupt", "swift", "peak", "usual", "was_planned", "onset", "told")

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._level.load_state_dict(state["level"])
        self._planned.load_state_dict(state["planned"])
        self._switched.load_state_dict(state.get("switched", {"wait": 0}))
        self._short, self._wander = Window(BLOCK, state["short"]), Window(32, state["wander"])
        self._shorts = deque(state["shorts"], maxlen=BLOCK)
        self._long = deque(state["long"], maxlen=3 * BLOCK)
        self._event = unpack(state["event"])
        for name in self._PLAIN:
            setattr(self, f"_{name}", state[name])
