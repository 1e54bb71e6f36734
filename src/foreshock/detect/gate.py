"""Judges an attempt of an optimizer step before it is taken: what stands against it, from the numbers at hand."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from typing import Any

from foreshock.detect.spike import Spike
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.stats import Window, tail_bound

# A gradient this many times the median of the last 64 is a burst: one of 30 cost a small GPT up to 5 %, while healthy
# recurrent nets have some of 20. And twice as far above the median as the largest of them, on the logarithmic scale:
# five sigma where that is normal. All numbers here are ours; Ling gives none.
BURST, ABOVE = 25.0, 2.0
GRADIENTS, KNOWN = 64, 16
FEW, HUGE = 3, 100.0  # gradients known from which a burst can be told, if it is so many times the usual one
LEAP, BEYOND = 3.0, 1.5  # times the last learning rate, and the largest that was ever taken
LEARNT = 20  # steps taken before a learning rate can leap
LEAPING, LASTED = 100, 30  # attempts after which a leap that stays is a setting; and after which one that ends was
VANISHED = 0.1  # times what the second moments were some attempts ago: no beta2 in use decays so fast
FAINT = 1e-18  # norm of second moments below which float32 loses the squares it is made of: gradients below some 1e-11
GROWN = 3.0  # times the norm of all parameters a few attempts ago: no training does that once it is under way
LOOKS = 3  # looks at parameters that have leapt after which they are what they are
STRONG, ONCE_IN = 9.0, 1e-5  # z of a rise that is answered at once, and the chance per attempt that noise rises so far
BOTH = 5.0  # times the usual gradient, and as much above the largest of late as a burst: then a weaker rise does
SURE = 3  # elevated attempts in a row that are answered although each is weaker
SHARE, LEAST = 0.02, 0.08  # of the descent so far, and of the loss: a rise that is less has done no harm worth a step
WIDE = 5  # attempts in a row that make a spike wide (Ling, arXiv 2503.05139, names narrow and wide, without numbers)
MEMORY = 32  # attempts for which an accepted suspicion is remembered


class Gate:
    """A fold over attempts: `judge` tells what stands against one, `took` or `refused` what became of it.

    What it may be told of an attempt (all are optional): `loss` of the batch before the update; `grad_norm`; `lr`, the
    largest learning rate; `steps`, the optimizer's own count; `moments`, the norm of its second moments; `weights`,
    that of the parameters, now and then; `parameters`, 0 where one of them is not finite.

    Events, each for this very attempt: `nonfinite`; `spike` of the loss, found as `Spike` finds it, with the data
    `records` (elevated attempts in a row), `refused` (of them, in a row, right before this one), `restored` (rollbacks
    since the onset), `same` (the loss is to the bit that of the refused attempt before), `width`, and `suspect` and
    `since` where something suspicious was let pass of late: the first attempt that it was taken at; `precursor` of
    `grad_norm` (a burst), of `lr` (a leap; `factor`), of `optimizer_state` (moments that vanished between two steps)
    and of `parameters` (their norm leapt since it was last looked at).

    Where the set of tensors changes (`tensors` counts them), or the user has loaded a state (`forget`), norms, moments
    and learning rates are learnt anew, and so they are after a declared switch of the batch (`batch_switched`);
    `lr_meant`, above 0, says that a schedule set the learning rate.

    A spike is one stretch of elevated attempts: where a calm one lies between, what comes then is another cause.
    A refused batch's loss is known to the spike detector, which never learns its baseline from what it flags.
    """

    def __init__(self) -> None:
        self._spike = Spike()
        self._bad: dict[str, tuple[int, int]] = {}  # signal -> first attempt of the stretch, attempts in it
        self._gradients = Window(GRADIENTS)
        self._suspects: deque[tuple[int, str]] = deque(maxlen=8)
        self._rate = self._largest = 0.0  # the last learning rate that was taken and no leap; the largest of them
        self._leapt_to = 0.0
        self._leap: tuple[int, int] | None = None  # attempt at which the learning rate leapt, attempts since
        self._moments = self._count = math.nan  # an attempt ago
        self._first: float | None = None
        self._best = math.inf
        self._weights: tuple[int, float] | None = None  # attempt at which the parameters' norm was looked at, and it
        self._grew: tuple[int, int] | None = None  # attempt at which they were seen to have leapt, and looks since
        self._tensors: float | None = None
        self._seen: tuple[str, str, int] | None = None  # key of the spike that the last stretch of attempts was of
        self._begun = (0, 0)  # attempt at which that stretch was raised, and its first
        self._taken = self._row = self._elevated = self._restored = 0
        self._values: Mapping[str, float] = {}  # of this attempt
        self._before: Mapping[str, float] = {}  # of the one before
        self._step = 0

    def judge(self, step: int, values: Mapping[str, float]) -> tuple[Event, ...]:
        """Returns what stands against the attempt.

        Args:
            step: its number; they increase.
            values: what is known of it before its update.
        """
        self._step, self._before, self._values = step, self._values, values
        tensors = values.get("tensors", self._tensors)
        if (tensors != self._tensors and self._tensors is not None) or "batch_switched" in values:
            self.forget()
        self._tensors = tensors
        while self._suspects and step - self._suspects[0][0] > MEMORY:
            self._suspects.popleft()
        found = [*self._nonfinite(step, values)]
        loss = values.get("loss", math.nan)
        spike = self._spiking(step, loss, values) if math.isfinite(loss) else None
        found += [spike] if spike is not None else []
        found += [*self._burst(step, values), *self._leaps(step, values), *self._vanished(step, values)]
        found += self._grown(step, values)
        return tuple(found)

    def forget(self) -> None:
        """Learns anew what is usual of gradients, moments, parameters and learning rates: others are trained now."""
        self._gradients = Window(GRADIENTS)
        self._rate = self._largest = 0.0
        self._leap = self._weights = self._grew = None
        self._moments = self._count = math.nan

    def took(self, suspected: str = "") -> None:
        """Learns from the attempt: its step was taken, although of this signal something stood against it."""
        self._row = 0
        self._taken += 1
        norm, rate = self._values.get("grad_norm", math.nan), self._values.get("lr", math.nan)
        if math.isfinite(norm) and norm > 0.0:
            self._gradients.push(math.log(norm))
        if suspected:
            self._suspects.append((self._step, suspected))
        if math.isfinite(rate) and self._leap is None:
            self._rate, self._largest = rate, max(self._largest, rate)
        self._remember()

    def refused(self) -> None:
        """Takes note that the step was not taken."""
        self._row += 1
        self._remember()

    def restored(self) -> None:
        """Takes note that an earlier state was put back instead: what was let pass since then is undone."""
        self._restored += 1
        self._suspects.clear()
        self._moments = self._count = math.nan
        self._row += 1

    def _remember(self) -> None:
        self._moments = self._values.get("moments", self._moments)
        self._count = self._values.get("steps", math.nan)

    def _nonfinite(self, step: int, values: Mapping[str, float]) -> list[Event]:
        found = []
        for signal in ("parameters", "loss", "grad_norm"):
            value = values.get(signal)
            bad = value is not None and (value == 0.0 if signal == "parameters" else not math.isfinite(value))
            if not bad:
                self._bad.pop(signal, None)
                continue
            begun, records = self._bad.get(signal, (step, 0))
            self._bad[signal] = begun, records + 1
            data = {"records": records + 1, "refused": self._row, "restored": self._restored}
            found.append(Event("nonfinite", begun, begun, step, None, math.nan, math.inf, signal, data))
        return found

    def _spiking(self, step: int, loss: float, values: Mapping[str, float]) -> Event | None:
        """Returns the spike that this attempt belongs to, if it is one of its elevated records."""
        known = {name: values[name] for name in ("loss", "lr", "batch_switched") if name in values}
        self._spike.update(StepRecord(step, known))
        event = self._spike.open
        if event is None or event.end != step:
            self._elevated = self._restored = 0
            if event is None:
                self._settle(loss)
            return None
        if not self._elevated:  # a stretch begins; the first one of an event may have begun before it was raised
            again = self._seen == event.key
            self._seen, self._begun = event.key, (step, step) if again else (event.raised, event.onset)
            self._elevated = 0 if again else int(event.data["records"]) - 1
        self._elevated += 1
        if not self._matters(event, loss):
            return None
        data: dict[str, Any] = {
            "baseline": event.data["baseline"], "records": self._elevated, "refused": self._row,
            "restored": self._restored, "same": self._repeats("loss"),
            "width": "wide" if self._elevated >= WIDE else "narrow",
        }  # fmt: skip
        if self._suspects:
            _, suspect = self._suspects[-1]
            data |= {"suspect": suspect, "since": min(at for at, name in self._suspects if name == suspect)}
        raised, onset = self._begun
        peak = max(event.peak, onset)
        return Event("spike", raised, onset, peak, None, event.height, event.severity, "loss", data)

    def _repeats(self, signal: str) -> bool:
        """Returns whether a signal is to the bit what it was at the refused attempt before: no batch is to blame."""
        return self._row > 0 and self._before.get(signal) == self._values.get(signal)

    def _matters(self, event: Event, loss: float) -> bool:
        """Returns whether a rise is more than this training's noise, and more than a trifle."""
        descent = 0.0 if self._first is None else self._first - self._best
        level, spike = float(event.data["baseline"]), self._spike
        rise = spike.scaled(loss) - spike.scaled(level)
        if loss - level <= SHARE * descent or (rise < LEAST and not spike.signed):
            return False
        if self._elevated >= SURE or self._row or self._suspects or self._towers(self._values, BOTH):
            return True
        return bool(rise > STRONG * event.data["scale"] and rise > tail_bound(spike.residuals, ONCE_IN))

    def _settle(self, loss: float) -> None:
        """Learns how far the loss has come down."""
        self._first = loss if self._first is None else max(self._first, loss)
        self._best = min(self._best, loss)

    def _burst(self, step: int, values: Mapping[str, float]) -> list[Event]:
        if not self._towers(values, BURST):
            self._bad.pop("burst", None)
            return []
        begun, records = self._bad.get("burst", (step, 0))
        self._bad["burst"] = begun, records + 1
        norm, usual = values["grad_norm"], math.exp(self._gradients.median())
        data = {
            "records": records + 1, "refused": self._row, "same": self._repeats("grad_norm"), "usual": usual,
            "factor": norm / usual,
        }  # fmt: skip
        return [Event("precursor", begun, begun, step, None, norm - usual, norm / usual, "grad_norm", data)]

    def _towers(self, values: Mapping[str, float], factor: float) -> bool:
        """Returns whether the gradient is this many times the usual one, and far above the largest of late."""
        norm, window = values.get("grad_norm", math.nan), self._gradients
        if not (math.isfinite(norm) and norm > 0.0) or len(window) < FEW:
            return False
        usual, factor = window.median(), factor if len(window) >= KNOWN else max(factor, HUGE)
        return math.log(norm) - usual > max(math.log(factor), ABOVE * (window.quantile(1.0) - usual))

    def _leaps(self, step: int, values: Mapping[str, float]) -> list[Event]:
        rate = values.get("lr", math.nan)
        if not math.isfinite(rate) or self._taken < LEARNT or not self._rate > 0.0:
            return []
        above = rate > BEYOND * self._largest or self._leap is not None  # a leap ends where the rate is back
        leapt = rate > LEAP * self._rate and above and not values.get("lr_meant", 0.0) > 0.0
        if not leapt or (self._leap is not None and self._leap[1] >= LEAPING):
            if self._leap is not None and self._leap[1] >= LASTED:
                self._largest = max(self._largest, self._leapt_to)
            self._leap = None
            return []
        self._leapt_to = rate
        begun, attempts = self._leap or (step, 0)
        self._leap = begun, attempts + 1
        data = {"factor": rate / self._rate, "usual": self._rate, "records": attempts + 1}
        return [Event("precursor", begun, begun, step, None, rate - self._rate, rate / self._rate, "lr", data)]

    def _vanished(self, step: int, values: Mapping[str, float]) -> list[Event]:
        """Says whether the optimizer's memory was lost since the last attempt."""
        moments, count = values.get("moments", math.nan), values.get("steps", math.nan)
        shrunk = moments < VANISHED * self._moments and self._moments > FAINT
        if not (shrunk or count < self._count):  # what is not known is NaN and compares as no
            return []
        data = {"moments": moments, "moments_before": self._moments, "steps": count, "steps_before": self._count}
        known = {name: value for name, value in data.items() if math.isfinite(value)}
        return [Event("precursor", step, step, step, None, -1.0, math.inf, "optimizer_state", known)]

    def _grown(self, step: int, values: Mapping[str, float]) -> list[Event]:
        """Says whether the parameters have leapt; the norm from before the leap is kept."""
        norm = values.get("weights", math.nan)
        if not math.isfinite(norm):
            return []
        at, before = self._weights or (step, norm)
        begun, looks = self._grew or (step, 0)
        if norm > GROWN * before > 0.0 and self._taken >= LEARNT and looks < LOOKS:
            self._grew = begun, looks + 1
            data = {"norm": norm, "norm_before": before, "since": at, "factor": norm / before}
            return [Event("precursor", begun, at, step, None, norm - before, norm / before, "parameters", data)]
        self._weights, self._grew = (step, max(norm, before)), None  # parameters may swing through zero
        return []

    def state_dict(self) -> dict[str, Any]:
        """Returns the state as plain JSON values."""
        return {
            "spike": self._spike.state_dict(), "bad": {name: list(bad) for name, bad in self._bad.items()},
            "gradients": self._gradients.to_list(), "suspects": [list(each) for each in self._suspects],
            "rate": self._rate, "largest": self._largest, "leap": None if self._leap is None else list(self._leap),
            "moments": self._moments, "count": self._count, "first": self._first, "best": self._best,
            "weights": None if self._weights is None else list(self._weights), "leapt_to": self._leapt_to,
            "grew": None if self._grew is None else list(self._grew), "tensors": self._tensors,
            "taken": self._taken, "row": self._row,
            "seen": None if self._seen is None else list(self._seen), "begun": list(self._begun),
            "elevated": self._elevated, "restored": self._restored, "values": dict(self._values),
        }  # fmt: skip

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores the state that `state_dict` returned."""
        self._spike.load_state_dict(state["spike"])
        self._bad = {name: (int(begun), int(records)) for name, (begun, records) in state["bad"].items()}
        self._gradients = Window(GRADIENTS, state["gradients"])
        self._suspects = deque(((int(at), str(name)) for at, name in state["suspects"]), maxlen=8)
        self._rate, self._largest = float(state["rate"]), float(state["largest"])
        self._leap = None if state["leap"] is None else (int(state["leap"][0]), int(state["leap"][1]))
        self._moments, self._count = float(state["moments"]), float(state["count"])
        self._first, self._best = state["first"], float(state["best"])
        weights = state["weights"]
        self._weights = None if weights is None else (int(weights[0]), float(weights[1]))
        grew = state["grew"]
        self._grew = None if grew is None else (int(grew[0]), int(grew[1]))
        self._leapt_to, self._tensors = float(state["leapt_to"]), state["tensors"]
        self._taken, self._row = int(state["taken"]), int(state["row"])
        self._values = dict(state["values"])
        seen, begun = state["seen"], state["begun"]
        self._seen = None if seen is None else (str(seen[0]), str(seen[1]), int(seen[2]))
        self._begun = (int(begun[0]), int(begun[1]))
        self._elevated, self._restored = int(state["elevated"]), int(state["restored"])
