"""Foretells spikes of the curvature family: chi stays above 1, then the curvature along the gradient does."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.crossing import Crossing
from foreshock.detect.transient import DUST, Transients
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import CHANGE_TO_SIGMA

IN_A_ROW = 3  # readings above 1: with fewer, noise raises as many false alarms as true ones (Bai et al. 2025)
CALM = 5  # readings in a row at or below 1 that end an event in which the loss rose
WAIT, PATIENT = 25, 100  # the same where it did not, by the readings above 1 there were: a life at the edge
SAME = 0.5  # |cosine| of successive top directions; less is another mode, or the noise of changing batches
RISE = 1.5  # what the loss must rise by to be a spike (Bai et al. 2025, section on labels)
# A rise that is expected to be less raises nothing. On 19 trainings of tanh networks anything from 1.15 to 1.45 found
# the same spikes and 1.6 lost two; the larger it is, the fewer are raised for a rise of less than 1.5, and the later.
WORTH = 1.45
SOON = 100  # steps to a rise that nothing bounds (gradient descent): farther off it may well not come
VIOLENT = 4.0  # chi from which no direction has to last: a batch's own chi is two to three times the whole one's
GROWN = 0.2  # share of the loss in the unstable motion from which it is no longer a matter of outlooks
RECENT = 33  # readings whose changes tell the noise
LEADS = 64  # lead times that are kept for the statistics


class Forecast:
    """Raises `watch` when chi stays above 1, `imminent` when the curvature along the gradient does.

    Both want three readings in a row above 1 (readings may be far apart; steps without one do not count), along one
    direction that lasts (`chi_overlap`): an instability can only grow along a direction that stays, and on changing
    batches it does not. Where the reading brings an outlook (`expected_rise`), an excursion that will limit itself
    before the loss has risen by 45 % raises nothing until its outlook is worse, or until a fifth of the loss is motion
    along the unstable direction.

    Excursions that raised nothing make one event `transient` where they come close after each other, which is no alarm:
    its data says how many were "short", "turning" or "mild". A run that lives at its edge without spikes is one
    `watch`, not many: it waits longer for calm the longer it has lasted. The chi of an optimizer whose steps are
    bounded whatever the gradient (`chi_formal`) raises nothing.

    Event data: "value" (largest reading), "readings" (above 1), "scale" (noise of a reading), "expected" (rise of the
    loss foretold when it was raised, absent where there was no outlook) and "expected_in" (steps to a rise of 1.5),
    "lead" (steps from `raised` to that rise, once it came), "leads" (median of all leads so far, and their number),
    "crossing" (of a watch: what had been foretold of its onset, see `Crossing`).

    >>> from foreshock.run.record import StepRecord
    >>> forecast, chis = Forecast(), [0.6, 0.9, 1.1, 1.2, 1.3]
    >>> [event.kind for i, chi in enumerate(chis) for event in forecast.update(StepRecord(100 * i, {"chi": chi}))]
    ['watch']
    """

    def __init__(self) -> None:
        self.crossing = Crossing()
        self._leads: list[int] = []
        self._levels = {"chi": _Level("watch", "chi"), "chi_gradient": _Level("imminent", "chi_gradient")}
        self._transients = Transients()

    @property
    def leads(self) -> tuple[int, ...]:
        """Returns steps from a watch to the loss having risen 1.5 times, of the last spikes that it foretold."""
        return tuple(self._leads)

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns an event when it is raised, when it grew twofold, when its spike came, and when it ended."""
        values = record.values
        if values.get("chi_formal", 0.0) == 1.0:
            return ()
        found: list[Event] = []
        loss = values.get("loss")
        for level in self._levels.values():
            found += level.see(record.step, loss, self._leads)
        chi = values.get("chi")
        if is_finite(chi):
            self.crossing.take(record.step, chi, values.get("chi_crossing"))
        for signal, level in self._levels.items():
            value = values.get(signal)
            if is_finite(value):
                raised = level.take(record.step, value, values, self.crossing)
                found += raised
                if signal == "chi":
                    found += self._transients.take(record.step, value, level.passed)
        return found

    def finish(self) -> Sequence[Event]:
        """Returns the open events, ended at their last readings above 1."""
        levels = [level.event for level in self._levels.values() if level.event is not None]
        return [*levels, *self._transients.finish()]

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "leads": list(self._leads), "crossing": self.crossing.state_dict(),
            "transients": self._transients.state_dict(),
            "levels": {signal: level.state_dict() for signal, level in self._levels.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._leads = [int(lead) for lead in state["leads"]]
        self.crossing.load_state_dict(state["crossing"])
        self._transients.load_state_dict(state["transients"])
        for signal, level in self._levels.items():
            level.load_state_dict(state["levels"][signal])


@dataclass(slots=True)
class _Excursion:
    """Readings above 1 without a break: (step, value) of each, and how many of the last kept their direction."""

    readings: list[tuple[int, float]] = field(default_factory=list)
    steady: int = 0
    mild: bool = False


class _Level:
    """Readings of one signal.

    Attributes:
        event: the open event.
        passed: how the excursion ended that the last reading ended without raising anything: "short", "turning" or
            "mild"; empty where none did.
    """

    def __init__(self, kind: str, signal: str) -> None:
        self.kind, self.signal = kind, signal
        self.event: Event | None = None
        self.passed = ""
        self._recent: deque[float] = deque(maxlen=RECENT)
        self._now = _Excursion()
        self._below = 0
        self._told = 0.0
        self._low = math.inf  # least loss since the excursion began
        self._risen = False

    def see(self, step: int, loss: float | None, leads: list[int]) -> Sequence[Event]:
        """Takes the loss of a step: notes when it has risen from its least value since the excursion began."""
        if not is_finite(loss):
            return ()
        if not self._now.readings and self.event is None:
            self._low = loss
            return ()
        self._low = min(self._low, loss)
        event = self.event
        if event is None or self._risen or not 0 < RISE * self._low <= loss:
            return ()
        self._risen = True
        lead = step - event.raised
        if self.kind == "watch":
            leads[:] = [*leads, lead][-LEADS:]
        data = {**event.data, "lead": lead}
        if leads:
            data["leads"] = {"median": sorted(leads)[len(leads) // 2], "spikes": len(leads)}
        self.event = replace(event, data=data)
        return (replace(self.event, end=None),)

    def take(
        self, step: int, value: float, values: Mapping[str, float], crossing: Crossing
    ) -> Sequence[Event]:
        """Takes a reading, with the other signals of its step."""
        self.passed = ""
        if self.event is not None:
            return self._follow(self.event, step, value)
        now = self._now
        if value <= 1.0:
            if now.readings:
                self.passed = "short" if len(now.readings) < IN_A_ROW else "mild" if now.mild else "turning"
            self._now = _Excursion()
            self._recent.append(value)
            return ()
        overlap = values.get("chi_overlap")
        turned = is_finite(overlap) and overlap < SAME and value < VIOLENT
        now.steady = 1 if turned else now.steady + 1
        now.readings.append((step, value))
        if now.steady < IN_A_ROW:
            return ()
        rise, loss, motion = (values.get(name) for name in ("expected_rise", "loss", "chi_mode_loss"))
        soon = values.get("expected_rise_in")
        now.mild = rise is not None and rise < WORTH  # a NaN outlook is no reason to keep quiet
        now.mild |= rise is None and is_finite(soon) and soon > SOON
        if now.mild and not (is_finite(loss) and is_finite(motion) and motion > GROWN * loss > 0):
            return ()
        return (self._raise(step, values, crossing),)

    def _raise(self, step: int, values: Mapping[str, float], crossing: Crossing) -> Event:
        changes = sorted(abs(b - a) for a, b in pairwise(self._recent))
        scale = max(DUST, CHANGE_TO_SIGMA * changes[len(changes) // 2]) if changes else DUST
        readings = self._now.readings
        peak, most = max(readings, key=lambda reading: reading[1])
        data: dict[str, Any] = {"value": most, "readings": len(readings), "scale": scale}
        for name, signal in (("expected", "expected_rise"), ("expected_in", "expected_rise_in")):
            if signal in values:
                data[name] = values[signal]
        if self.kind == "watch" and (foretold := crossing.foretold()):
            data["crossing"] = foretold
        height, onset = most - 1.0, readings[0][0]
        self.event = Event(self.kind, step, onset, peak, step, height, height / scale, self.signal, data)
        self._now, self._below, self._told, self._risen = _Excursion(), 0, height, False
        return replace(self.event, end=None)

    def _follow(self, event: Event, step: int, value: float) -> Sequence[Event]:
        if value <= 1.0:
            self._below += 1
            wait = CALM if self._risen else max(WAIT, min(PATIENT, event.data["readings"]))
            if self._below < wait:
                return ()
            self.event = None
            self._recent.clear()
            return (event,)
        self._below = 0
        data = {**event.data, "readings": event.data["readings"] + 1}
        event = replace(event, end=step, data=data)
        if value > event.data["value"]:
            height = value - 1.0
            data = {**data, "value": value}
            event = replace(event, peak=step, height=height, severity=height / event.data["scale"], data=data)
        self.event = event
        if event.height <= 2.0 * self._told:
            return ()
        self._told = event.height
        return (replace(event, end=None),)

    def state_dict(self) -> dict[str, Any]:
        now = self._now
        return {
            "event": pack(self.event), "recent": list(self._recent), "readings": [list(each) for each in now.readings],
            "steady": now.steady, "mild": now.mild, "below": self._below, "told": self._told, "low": self._low,
            "risen": self._risen, "passed": self.passed,
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.event = unpack(state["event"])
        self._recent = deque(state["recent"], maxlen=RECENT)
        readings = [(int(step), value) for step, value in state["readings"]]
        self._now = _Excursion(readings, int(state["steady"]), bool(state["mild"]))
        self._below, self._told = int(state["below"]), float(state["told"])
        self._low, self._risen, self.passed = float(state["low"]), bool(state["risen"]), str(state["passed"])
