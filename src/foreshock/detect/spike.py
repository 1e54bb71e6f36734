"""Detects spikes of the loss: it rises abruptly above its recent noise, and mostly falls back."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from foreshock.detect.base import is_finite, pack, unpack
from foreshock.detect.planned import PlannedRise
from foreshock.detect.switched import Switched
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import DUST, Baseline, LossScale, Window, tail_bound

# What a rise must be, by the number of records in a row that it lasts: (records, z, share). The longer, the less,
# because chance outliers do not come in rows, not even under heavy tails. `share` is of the loss (on its logarithmic
# scale), for signed losses of the descent so far. No paper gives numbers. These were chosen on synthetic curves of 54
# families and some short real trainings, and stand in the middle of a plateau: a quarter more or less changes little.
RULES = ((1, 6.0, 0.20), (2, 6.0, 0.08), (3, 5.0, 0.02), (5, 4.0, 0.02))
SUSPECT, LASTING = RULES[-1][1], RULES[-1][0]

WARM = 6  # residuals known before anything is judged
EARLY = 5.0  # thresholds are (1 + EARLY / n) times higher while only n residuals are known
YOUNG = 20  # and below so many residuals every rise must be as large as that of a single record
FALSE_RATE = 5e-4  # chance per record that noise alone passes the tail bound, before the other conditions
TAIL_KNOWN = 32  # residuals from which a tail can be learnt
OBVIOUS, OBVIOUS_Z = 3.0, 3.5  # a loss e^3 = 20 times as high (signed: by three descents) needs no tail bound
LATE = 25  # records into an event, a rise twice as high as all of the last so many is another event
JUMPS = 2.5  # a rise must be so many times what the loss usually (80th percentile) changes from record to record
# For a while after a declared switch of the batch a rise must have doubled the loss for five records in a row, or have
# lost a quarter of the descent at once: an optimizer whose moments were changed stumbles, and the tail of the noise of
# smaller batches is not known yet.
SWITCHED, DOUBLED, LOST = 100, 0.693, 0.25
HABIT = 128  # three narrow events within so many records: outliers like them are the noise of this run


@dataclass(slots=True)
class _Open:
    """What is kept while an event is open. `anchor` is the predicted value at the onset, `noise` the scale then."""

    anchor: float
    noise: float
    top: float
    told: float
    calm: int = 0
    tail: list[float] = field(default_factory=list)


class Spike:
    """Raises one event for each spike of a signal and follows it until calm returns.

    Each record is compared with a prediction from the admitted history (`Baseline`), in units of the usual prediction
    error. A record that stands out waits as a suspect, not admitted, until the next ones tell: `RULES` says what is
    asked of one, two, three or five suspects in a row. A rise must also pass the tail bound that the noise of this run
    sets, exceed the usual change from record to record, and be a rise over the last real values.

    After a declared switch of the batch (`batch_switched`) the noise is taken to have grown with it, and little is
    raised for 100 records.

    What is flagged never enters the history. The event ends when the signal stayed near its old level: for 5 records
    after a narrow spike, for up to 25 after a wide one, so that its ring-down belongs to it. A level that stays up
    without rising further for `longest` records is a level change: one wide event, and the history starts anew there.

    Event data: "baseline" (in units of the signal), "scale" (on the loss's scale: of ln(loss) for positive losses),
    "width" ("narrow" below 5 elevated records, else "wide"; Ling, arXiv 2503.05139, names the two but gives no
    number, so 5 is ours), "records" (elevated ones), "area" (sum of loss - baseline over them), "level_change".
    """

    WIDE = 5

    def __init__(self, signal: str = "loss", *, half: int = 10, memory: int = 256, longest: int = 120) -> None:
        self.signal = signal
        self.half = half
        self.memory = memory
        self.longest = longest
        self._scale = LossScale()
        self._base = Baseline(half, memory)
        self._planned = PlannedRise(wait=100)
        self._switched = Switched(wait=SWITCHED)
        self._pending: list[tuple[int, float, float]] = []  # suspects: (step, loss, residual)
        self._admitted: deque[float] = deque(maxlen=64)  # losses as they came, but for what was flagged
        self._narrow: deque[tuple[int, float]] = deque(maxlen=3)  # the last narrow events: (record count, residual)
        self._count = 0
        self._first: float | None = None
        self._best = math.inf
        self._event: Event | None = None
        self._open = _Open(0.0, 0.0, 0.0, 0.0)

    def update(self, record: StepRecord) -> Sequence[Event]:
        """Returns the event when it is raised, when it became wide or twice as high, and when it ended."""
        planned, settling = self._planned.update(record), self._switched.update(record)
        if self._switched.noisier > 1.0:
            self._base.widen(self._switched.noisier)
        value = record.values.get(self.signal)
        if not is_finite(value):
            return ()
        self._count += 1
        if not self._scale.fits(value):
            self._rescale(value)
        y = self._scale(value)
        ended: Sequence[Event] = ()
        if self._event is not None:
            if not self._is_another(y):
                return self._follow(self._event, record.step, value, y)
            ended = self._close(self._event, self._open.tail[-self.half :], level_change=False)
        base = self._base
        residual = base.residual(y)
        if residual <= 0.0 or len(base) < WARM or residual < SUSPECT * (scale := base.scale()):
            if self._pending:
                self._release(base.scale())
            self._admit(value, y, residual)
            return ended
        self._pending.append((record.step, value, residual))
        if self._is_spike(scale, planned) and not (settling and self._stumbles()):
            return (*ended, self._raise(record.step, scale))
        if len(self._pending) == LASTING:
            self._release(scale)
        return ended

    @property
    def open(self) -> Event | None:
        """The event that is open, as known so far: its `end` is the last elevated record."""
        return self._event

    @property
    def residuals(self) -> Window:
        """What predictions were off by, on the loss's scale; of what was not flagged. Read only."""
        return self._base.residuals

    @property
    def signed(self) -> bool:
        """Whether the signal has been negative, so that rises are differences and not ratios."""
        return self._scale.linear

    def scaled(self, value: float) -> float:
        """Returns a value of the signal on the scale that rises are measured on."""
        return self._scale(value)

    def finish(self) -> Sequence[Event]:
        """Returns the open event as known so far, ended at its last elevated record."""
        return () if self._event is None else (self._event,)

    def _is_spike(self, scale: float, planned: bool) -> bool:
        base, to_y, history = self._base, self._scale, list(self._admitted)
        jumps = sorted(abs(b - a) for a, b in pairwise(history[-17:]))
        # the smallest change ever seen of late is the resolution of a rounded loss, and next to nothing otherwise
        resolution = min((abs(b - a) for a, b in pairwise(history) if a != b), default=0.0)
        if to_y.zero:
            resolution = max(resolution, to_y.least)
        jump = JUMPS * max(jumps[int(0.8 * (len(jumps) - 1))], resolution)
        reference = min(base.level, max(to_y(value) for value in history[-3:]))
        unit = self._unit()
        few = 1.0 + EARLY / len(base)
        for records, z, share in RULES[: len(self._pending)]:
            if len(self._pending) < records:
                return False
            last = self._pending[-records:]
            residual, lowest = min(item[2] for item in last), min(item[1] for item in last)
            rise = to_y(lowest) - reference
            least = RULES[0][2] if planned or len(base) < YOUNG else share
            obvious = rise > OBVIOUS * unit > 0.0
            if residual < (OBVIOUS_Z if obvious else z) * few * scale or rise < max(least * unit, 3.0 * scale):
                continue
            if lowest - to_y.back(reference) < jump or (records <= 2 and residual < self._habit()):
                continue
            if obvious or len(base) < TAIL_KNOWN:
                return True
            if residual >= tail_bound(base.residuals, FALSE_RATE ** (1.0 / records)):
                return True
        return False

    def _stumbles(self) -> bool:
        """Returns whether what is pending is no more than a switch of the batch may do."""
        lowest, highest = min(item[1] for item in self._pending), max(item[1] for item in self._pending)
        level, back = self._base.level, self._scale.back
        doubled = self._scale(lowest) - level > DOUBLED * max(self._unit(), DUST)
        if len(self._pending) >= LASTING and doubled:
            return False
        descent = 0.0 if self._first is None else back(self._first) - back(self._best)
        return highest - back(level) < max(LOST * descent, OBVIOUS * abs(back(level)))

    def _unit(self) -> float:
        """What a share of a rise is of: 1 on the logarithmic scale, the descent so far on the linear one."""
        if not self._scale.linear:
            return 1.0
        return 0.0 if self._first is None else max(0.0, self._first - self._best)

    def _habit(self) -> float:
        """How high an outlier must be where three narrow ones came of late."""
        if len(self._narrow) < 3 or self._count - self._narrow[0][0] > HABIT:
            return 0.0
        return 1.5 * max(residual for _, residual in self._narrow)

    def _admit(self, value: float, y: float, residual: float) -> None:
        self._base.admit(y, residual)
        self._admitted.append(value)
        if self._first is None and len(self._base) >= self.half:
            self._first = self._base.level
        self._best = min(self._best, self._base.level)

    def _release(self, scale: float) -> None:
        """Admits the suspects, which were no spike: the level takes them winsorised, the noise learns them as they are.

        (A noise that learnt winsorised residuals would see equal ones, and shrink until everything stood out.)
        """
        for _, value, residual in self._pending:
            y = self._scale(value)
            most = max(y - residual + SUSPECT * scale, self._base.level)
            self._admit(value, min(y, most), residual)
        self._pending.clear()

    def _raise(self, step: int, scale: float) -> Event:
        onset, value, residual = self._pending[0]
        peak, highest, _ = max(self._pending, key=lambda item: item[1])
        baseline = self._scale.back(self._base.level)
        height = highest - baseline
        area = sum(item[1] for item in self._pending) - baseline * len(self._pending)
        top = self._scale(highest)
        self._open = _Open(self._scale(value) - residual, scale, top, height)
        self._open.tail = [self._scale(item[1]) for item in self._pending]
        data = {
            "baseline": baseline, "scale": scale, "width": "narrow", "records": len(self._pending), "area": area,
            "level_change": False,
        }  # fmt: skip
        severity = (top - self._open.anchor) / max(scale, DUST)
        self._event = Event("spike", step, onset, peak, step, height, severity, self.signal, data)
        self._pending.clear()
        return replace(self._event, end=None)

    def _follow(self, event: Event, step: int, value: float, y: float) -> Sequence[Event]:
        now = self._open
        now.tail = [*now.tail[1 - LATE :], y]
        rise = y - now.anchor
        if rise <= max(3.0 * now.noise, 0.1 * (now.top - now.anchor)):
            now.calm += 1
            if now.calm < min(LATE, max(5, event.data["records"] // 2)):
                return ()
            return self._close(event, now.tail[-now.calm :], level_change=False)
        now.calm = 0
        records = event.data["records"] + 1
        area = event.data["area"] + value - event.data["baseline"]
        width = "wide" if records >= self.WIDE else "narrow"
        event = replace(event, end=step, data={**event.data, "records": records, "area": area, "width": width})
        if y > now.top:
            now.top = y
            height, severity = value - event.data["baseline"], rise / max(now.noise, DUST)
            event = replace(event, peak=step, height=height, severity=severity)
        self._event = event
        if records >= self.longest and records % self.half == 0 and not self._still_rising():
            return self._close(event, now.tail[-self.half :], level_change=True)
        if records == self.WIDE or event.height > 2.0 * now.told:
            now.told = event.height
            return (replace(event, end=None),)
        return ()

    def _is_another(self, y: float) -> bool:
        now, unit = self._open, self._unit()
        if len(now.tail) < LATE:
            return False
        return y - now.anchor > max(2.0 * (max(now.tail) - now.anchor), SUSPECT * now.noise, RULES[0][2] * unit)

    def _still_rising(self) -> bool:
        tail, middle = self._open.tail, self.half // 2
        return sorted(tail[-self.half :])[middle] - sorted(tail[: self.half])[middle] > 3.0 * self._open.noise

    def _close(self, event: Event, values: Sequence[float], *, level_change: bool) -> Sequence[Event]:
        self._event = None
        if event.data["width"] == "narrow":
            self._narrow.append((self._count, event.severity * self._open.noise))
        self._base.restart(values)
        self._admitted.extend(self._scale.back(y) for y in values)
        return (replace(event, data={**event.data, "level_change": level_change}),)

    def _rescale(self, value: float) -> None:
        """Learns the history anew on the scale that suits this loss, and carries an open event over."""
        old, now = self._scale.back, self._open
        anchor, top, tail = old(now.anchor), old(now.top), [old(y) for y in now.tail]
        noise = old(now.anchor + now.noise) - anchor
        best = old(self._best) if self._best < math.inf else self._best
        first = None if self._first is None else old(self._first)
        self._scale.refit(value)
        if self._scale.linear:
            now.noise = noise
        now.anchor, now.top, now.tail = self._scale(anchor), self._scale(top), [self._scale(x) for x in tail]
        self._best = self._scale(best) if best < math.inf else best
        self._first = None if first is None else self._scale(first)
        history = [*self._admitted, *(loss for _, loss, _ in self._pending)]
        self._base = Baseline(self.half, self.memory)
        self._pending.clear()
        self._admitted.clear()
        for loss in history:
            y = self._scale(loss)
            self._admit(loss, y, self._base.residual(y))

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "scale": self._scale.state_dict(), "base": self._base.state_dict(), "planned": self._planned.state_dict(),
            "pending": [list(item) for item in self._pending], "admitted": list(self._admitted),
            "narrow": [list(item) for item in self._narrow], "count": self._count, "first": self._first,
            "best": self._best, "event": pack(self._event), "open": asdict(self._open),
            "switched": self._switched.state_dict(),
        }  # fmt: skip

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._scale.load_state_dict(state["scale"])
        self._base.load_state_dict(state["base"])
        self._planned.load_state_dict(state["planned"])
        self._switched.load_state_dict(state.get("switched", {"wait": 0}))
        self._pending = [(int(step), value, residual) for step, value, residual in state["pending"]]
        self._admitted = deque(state["admitted"], maxlen=self._admitted.maxlen)
        self._narrow = deque(((int(count), size) for count, size in state["narrow"]), maxlen=3)
        self._count, self._first, self._best = int(state["count"]), state["first"], float(state["best"])
        self._event, self._open = unpack(state["event"]), _Open(**state["open"])
