"""Foretells spikes of a low-precision softmax: the right class's gradient is rounded away, head and features inflate.

Source: Liu, Cao, Li and Zhou 2026, arXiv 2605.06152; the levels are explained in `softmax_levels`.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import pairwise
from typing import Any

from foreshock.detect import softmax_levels as levels
from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.softmax_levels import EARLY, HORIZON, NATS, RESIDUAL, Rise, at_work, faded, inflated
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import CHANGE_TO_SIGMA

IN_A_ROW = 2  # readings that raise `absorbing`; the others need one, while that is open
CALM, PATIENT = 3, 24  # readings in a row below that end an event: more after each short one, which is flicker
SHORT = 10  # readings of an event that is no flicker
LATE = 2  # times the steps it was foretold within, after which a residual that has not come to its level will not
EASED = 0.7  # share of a level below which a reading counts against an open event
RISE = 100.0  # times the loss and the wrong mass when it was raised: the spike (they go from 1e-8 to 1)
AFTER = 100  # steps after it at which an event is over though nothing was read since
RECENT = 9  # readings whose changes tell the noise
DUST = 0.1  # least noise, as a share of the level
KINDS = ("absorbing", "inflating", "imminent")
_KEPT = {
    "absorbed": "softmax_absorbed", "residual": "softmax_residual", "error": "softmax_error", "wrong": "softmax_wrong",
    "margin": "softmax_margin_median", "head_mean": "softmax_head_mean", "head_centred": "softmax_head_centred",
    "feature_mean": "softmax_feature_mean", "cosine": "softmax_cosine", "sensitivity": "softmax_sensitivity",
    "logit": "softmax_logit", "loss": "loss",
}  # fmt: skip


class Absorption:
    """Raises `absorbing`, `inflating` and `imminent`, in this order, on the way to a spike of a low-precision softmax.

    `absorbing`: right classes have gradients of exactly 0, and the class sums that should vanish hold more than a tenth
    of the gradient (the residual), or 0.003 and will hold a tenth within 150 steps, on two readings in a row;
    where the gradient was recomputed in float64 as well, the two must differ as much. `inflating`: the class mean of
    the head has turned against the mean feature (cosine below -0.8), or has doubled while the rest of the head stayed
    within 5 %. `imminent` (signal `softmax_sensitivity`): one step shifts a logit by more than a nat. The latter two
    are raised only while the first is open and the residual above a tenth.

    Readings may be far apart. A spike undoes absorption, so that each cycle is one event of each kind; readings about
    the levels neither end an event nor begin another, and where absorption comes and goes within few readings (narrow
    types, logits of thousands) calm has to last longer each time. Without a head only `absorbing` can be seen.

    Event data: "value" (largest reading), "readings" (at the level), "scale" (noise of a reading); as they were when it
    was raised "absorbed", "residual", "error", "wrong", "margin" (median), "loss", "head_mean", "head_centred",
    "growth" (of `head_mean`, since absorption began), "feature_mean", "cosine", "sensitivity", "logit", as far as they
    were read; "ahead" (of `absorbing`: steps until the residual would be a tenth); "by" (of `inflating`: "cosine",
    "growth" or both); "lead" (steps from `raised` to the loss having risen a hundredfold, once it did).

    >>> from foreshock.run.record import StepRecord
    >>> reading = {"loss": 1e-8, "softmax_absorbed": 0.9, "softmax_residual": 0.5}
    >>> absorption = Absorption()
    >>> [event.kind for i in range(3) for event in absorption.update(StepRecord(10 * i, reading))]
    ['absorbing']
    """

    def __init__(self) -> None:
        self._levels = {
            "absorbing": _Level("absorbing", "softmax_residual"), "inflating": _Level("inflating", "softmax_head_mean"),
            "imminent": _Level("imminent", "softmax_sensitivity"),
        }  # fmt: skip
        self._held: list[tuple[int, float]] = []  # readings at work before it is raised: (step, residual)
        self._head: dict[str, float] = {}  # of the last reading
        self._base: dict[str, float] = {}  # where growth counts from
        self._wait = CALM
        self._rise = Rise()

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns an event when it is raised, when it grew twofold, when its spike came, and when it ended."""
        values = record.values
        found = [event for level in self._levels.values() for event in level.see(record.step, values.get("loss"))]
        if self._undone(record.step):
            found += [event for kind in KINDS for event in self._levels[kind].close()]
        absorbed, residual = values.get("softmax_absorbed"), values.get("softmax_residual")
        if not is_finite(absorbed) or not is_finite(residual):
            return found
        error = values.get("softmax_error")
        error = error if is_finite(error) else None
        self._take_head(values)
        self._rise.take(record.step, residual)
        working = at_work(absorbed, residual, error)
        found += self._absorbing(record.step, values, error, working=working)
        if self._levels["absorbing"].event is None:
            return found + [event for kind in KINDS[1:] for event in self._levels[kind].close()]
        if working:  # a reading in between says nothing new of the head
            found += self._inflating(record.step, values)
            found += self._imminent(record.step, values)
        return found

    def finish(self) -> Sequence[Event]:
        """Returns the open events, ended at their last readings at the level."""
        return [level.event for level in self._levels.values() if level.event is not None]

    def _undone(self, step: int) -> bool:
        """Says whether the spike has come and nothing was read since: readings may be withheld."""
        event = self._levels["absorbing"].event
        if event is None or event.end is None or "lead" not in event.data:
            return False
        rise = event.raised + int(event.data["lead"])
        return event.end < rise and step > rise + AFTER

    def _absorbing(
        self, step: int, values: Mapping[str, float], error: float | None, *, working: bool
    ) -> list[Event]:
        level, absorbed, residual = self._levels["absorbing"], values["softmax_absorbed"], values["softmax_residual"]
        if level.event is not None:
            return self._follow(level, step, (absorbed, residual, error), working=working)
        ahead = 0.0 if working else self._ahead(absorbed, residual, error)
        if not ahead < HORIZON:
            self._held.clear()
            level.calm(residual)
            return []
        self._held.append((step, residual))
        if len(self._held) < IN_A_ROW:
            return []
        self._base = self._head
        readings, self._held = self._held, []
        return level.open(step, readings, RESIDUAL, self._data(values) | {"ahead": ahead})

    def _ahead(self, absorbed: float, residual: float, error: float | None) -> float:
        """Returns the steps until absorption will be at work; infinite where it is not on its way."""
        sound = error is not None and error <= levels.EARLY_ERROR
        early = absorbed > levels.ABSORBED and EARLY < residual <= RESIDUAL and not sound
        return self._rise.ahead() if early else math.inf

    def _follow(
        self, level: _Level, step: int, reading: tuple[float, float, float | None], *, working: bool
    ) -> list[Event]:
        """Takes a reading, (absorbed, residual, error), while `absorbing` is open."""
        event, (_, residual, _) = level.event, reading
        assert event is not None
        if event.data["value"] > RESIDUAL:
            holds, over = working, faded(*reading)
        else:  # foretold, and not there yet
            last = event.raised + LATE * HORIZON
            holds = working or EARLY < residual <= RESIDUAL
            over = not working and (residual < levels.FADED * EARLY or residual > RESIDUAL or step > last)
            self._base = self._head if working else self._base
        spiked = "lead" in event.data and self._wait == CALM
        found = level.follow(step, residual, holds=holds, wait=0 if not over else 1 if spiked else self._wait)
        if level.event is None and found[0].data["value"] > RESIDUAL:
            short = found[0].data["readings"] < SHORT
            self._wait = min(2 * self._wait, PATIENT) if short else max(self._wait // 2, CALM)
        return found

    def _inflating(self, step: int, values: Mapping[str, float]) -> list[Event]:
        level, mean = self._levels["inflating"], values.get("softmax_head_mean")
        if not is_finite(mean):
            return []
        rules = inflated(values, self._base)
        if level.event is None and rules:
            return level.open(step, [(step, mean)], self._base["head_mean"], self._data(values) | {"by": list(rules)})
        if level.event is None:
            level.calm(mean)
            return []
        cosine = values.get("softmax_cosine")
        turned = is_finite(cosine) and cosine < EASED * levels.COSINE
        against = not turned and mean < EASED * levels.GROWN * self._base["head_mean"]
        return level.follow(step, mean, holds=bool(rules), wait=self._wait if against else 0)

    def _imminent(self, step: int, values: Mapping[str, float]) -> list[Event]:
        level, shift = self._levels["imminent"], values.get("softmax_sensitivity")
        if not is_finite(shift):
            return []
        if level.event is None and shift > NATS:
            return level.open(step, [(step, shift)], NATS, self._data(values))
        if level.event is None:
            level.calm(shift)
            return []
        return level.follow(step, shift, holds=shift > NATS, wait=self._wait if shift < EASED * NATS else 0)

    def _take_head(self, values: Mapping[str, float]) -> None:
        """Keeps the norms of the head; growth counts from where absorption began, or the least class mean since."""
        mean, rest = values.get("softmax_head_mean"), values.get("softmax_head_centred")
        if not (is_finite(mean) and is_finite(rest) and mean > 0 and rest > 0):
            return
        self._head = {"head_mean": mean, "head_centred": rest}
        if self._levels["absorbing"].event is not None and (not self._base or mean < self._base["head_mean"]):
            self._base = self._head

    def _data(self, values: Mapping[str, float]) -> dict[str, Any]:
        """Returns the numbers of a reading as an event keeps them."""
        data = {name: values[signal] for name, signal in _KEPT.items() if is_finite(values.get(signal))}
        if self._base and "head_mean" in data:
            data["growth"] = data["head_mean"] / self._base["head_mean"]
        return data

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "held": [list(each) for each in self._held], "head": dict(self._head),
            "base": dict(self._base), "wait": self._wait, "rise": self._rise.state_dict(),
            "levels": {kind: level.state_dict() for kind, level in self._levels.items()},
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._held = [(int(step), value) for step, value in state["held"]]
        self._head, self._base, self._wait = dict(state["head"]), dict(state["base"]), int(state["wait"])
        self._rise.load_state_dict(state["rise"])
        for kind, level in self._levels.items():
            level.load_state_dict(state["levels"][kind])


@dataclass(slots=True)
class _Level:
    """Readings of one signal against its level, and the event that is open."""

    kind: str
    signal: str
    event: Event | None = None
    recent: deque[float] = field(default_factory=lambda: deque(maxlen=RECENT))
    against: int = 0
    told: float = 0.0

    def calm(self, value: float) -> None:
        """Takes a reading below the level: it tells the noise."""
        self.recent.append(value)

    def open(
        self, step: int, readings: list[tuple[int, float]], level: float, data: dict[str, Any]
    ) -> list[Event]:
        """Raises the event, `readings` being (step, value) of those at the level so far."""
        changes = sorted(abs(b - a) for a, b in pairwise(self.recent))
        scale = max(DUST * level, CHANGE_TO_SIGMA * changes[len(changes) // 2] if changes else 0.0)
        peak, most = max(readings, key=lambda reading: reading[1])
        data = {"value": most, "baseline": level, "scale": scale, "readings": len(readings), **data}
        height = most - level
        self.event = Event(
            self.kind, step, readings[0][0], peak, step, height, height / scale, self.signal, data
        )
        self.against, self.told = 0, max(height, scale)
        self.recent.clear()
        return [replace(self.event, end=None)]

    def follow(self, step: int, value: float, *, holds: bool, wait: int) -> list[Event]:
        """Takes a reading while the event is open: at the level if it `holds`, and against it unless `wait` is 0, the
        number of those in a row that end it.
        """
        event = self.event
        if event is None:
            return []
        if wait:
            self.against += 1
            return self.close() if self.against >= wait else []
        self.against = 0
        if not holds:
            return []
        data = {**event.data, "readings": event.data["readings"] + 1}
        event = replace(event, end=step, data=data)
        if value > data["value"]:
            height = value - data["baseline"]
            data = {**data, "value": value}
            event = replace(event, peak=step, height=height, severity=height / data["scale"], data=data)
        self.event = event
        if event.height <= 2.0 * self.told:
            return []
        self.told = event.height
        return [replace(event, end=None)]

    def see(self, step: int, loss: float | None) -> list[Event]:
        """Takes the loss of a step: notes the spike."""
        event = self.event
        if event is None or "lead" in event.data or not is_finite(loss):
            return []
        floor = max(event.data.get("loss", 0.0), event.data.get("wrong", 0.0))
        if not loss > RISE * floor > 0:
            return []
        self.event = replace(event, data={**event.data, "lead": step - event.raised})
        return [replace(self.event, end=None)]

    def close(self) -> list[Event]:
        """Ends the event, if one is open, at its last reading at the level."""
        event, self.event = self.event, None
        return [] if event is None else [event]

    def state_dict(self) -> dict[str, Any]:
        return {"event": pack(self.event), "recent": list(self.recent), "against": self.against, "told": self.told}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.event, self.recent = unpack(state["event"]), deque(state["recent"], maxlen=RECENT)
        self.against, self.told = int(state["against"]), float(state["told"])
