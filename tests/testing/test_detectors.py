"""The public contract: the shipped detectors keep it, and each known way to break it is named."""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from typing import Any, ClassVar

import pytest

from foreshock.detect import Divergence, Drift, NonFinite, Precursor, Spike
from foreshock.run import Event, StepRecord
from foreshock.testing import ContractError, check_detector


@pytest.mark.parametrize("kind", [NonFinite, Spike, Divergence, Drift, Precursor])
def test_shipped_detectors_keep_the_contract(kind: type) -> None:
    check_detector(kind)


class ZScore:
    """The ten lines everybody writes: a rolling mean and standard deviation."""

    def __init__(self) -> None:
        self.window: deque[float] = deque(maxlen=100)

    def update(self, record: StepRecord) -> Sequence[Event]:
        loss = record.values.get("loss")
        if loss is None:
            return ()
        events = ()
        if len(self.window) >= 30:
            mean, deviation = self.spread()
            if self.alarms(loss, mean, deviation):
                events = (self.event(record.step, loss - mean),)
        self.learn(loss)
        return events

    def spread(self) -> tuple[float, float]:
        values = list(self.window)
        mean = sum(values) / len(values)
        return mean, math.sqrt(sum((value - mean) * (value - mean) for value in values) / len(values)) + 1e-9

    def alarms(self, loss: float, mean: float, deviation: float) -> bool:
        return loss > mean + 6.0 * deviation

    def learn(self, loss: float) -> None:
        self.window.append(loss)

    def event(self, step: int, height: float) -> Event:
        return Event("spike", step, step, step, step, height, 1.0, "loss")

    def finish(self) -> Sequence[Event]:
        return ()

    def state_dict(self) -> dict[str, Any]:
        return {"window": list(self.window)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.window = deque(state["window"], maxlen=100)


class LearnsFromTheSpike(ZScore):
    def update(self, record: StepRecord) -> Sequence[Event]:
        loss = record.values.get("loss", math.nan)
        return super().update(record) if abs(loss) < 1e6 else ()


class FiresOnNan(LearnsFromTheSpike):
    def alarms(self, loss: float, mean: float, deviation: float) -> bool:
        return not loss <= mean + 6.0 * deviation

    def spread(self) -> tuple[float, float]:
        return statistics.median(self.window), 0.02

    def update(self, record: StepRecord) -> Sequence[Event]:
        loss = record.values.get("loss")
        if loss is not None and not abs(loss) < 1e6:
            self.bad = 129
        events = super().update(record)
        if getattr(self, "bad", 0) and loss is not None:
            self.bad -= 1
            return (self.event(record.step, 1.0),)
        return events

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"bad": getattr(self, "bad", 0)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.bad = state["bad"]


class BlindedByNan(FiresOnNan):
    def update(self, record: StepRecord) -> Sequence[Event]:
        loss = record.values.get("loss")
        self.bad = getattr(self, "bad", 0) or (loss is not None and math.isnan(loss))
        return () if self.bad else LearnsFromTheSpike.update(self, record)


class AlarmsEveryStep(LearnsFromTheSpike):
    def spread(self) -> tuple[float, float]:
        return 2.0, 0.02


class Sensitive(AlarmsEveryStep):
    def alarms(self, loss: float, mean: float, deviation: float) -> bool:
        return loss > mean + 2.0 * deviation


class NeverAdapts(AlarmsEveryStep):
    open = 0

    def update(self, record: StepRecord) -> Sequence[Event]:
        events = super().update(record)
        loss = record.values.get("loss", math.nan)
        if self.open:
            self.open = self.open if not loss < 2.2 else 0
            return ()
        self.open = 1 if events else 0
        return events

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"open": self.open}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.open = state["open"]


class ForgetsItsState(LearnsFromTheSpike):
    def state_dict(self) -> dict[str, Any]:
        return {"window": []}


class StateIsNotJson(LearnsFromTheSpike):
    def state_dict(self) -> dict[str, Any]:
        return {"window": self.window}


class Grows(Spike):
    def __init__(self) -> None:
        super().__init__()
        self.all: list[float] = []

    def update(self, record: StepRecord) -> Sequence[Event]:
        self.all.append(record.values.get("loss", 0.0))
        return super().update(record)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"all": self.all}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.all = list(state["all"])
        super().load_state_dict(state)


class FinishEnds(Spike):
    def finish(self) -> Sequence[Event]:
        events = super().finish()
        self._event = None
        return events


class Remembers(Spike):
    made: ClassVar[list[int]] = []

    def update(self, record: StepRecord) -> Sequence[Event]:
        self.made.append(1)
        return super().update(record) if len(self.made) < 3500 else ()


class OwnKind(Spike):
    def update(self, record: StepRecord) -> Sequence[Event]:
        return [Event("boom", e.raised, e.onset, e.peak, e.end, 1.0, 1.0, "loss") for e in super().update(record)]


class FromTheFuture(Spike):
    def update(self, record: StepRecord) -> Sequence[Event]:
        step = record.step + 1
        return [Event("spike", step, step, step, None, 1.0, 1.0, "loss") for _ in super().update(record)]


class DiesOnNan(Spike):
    def update(self, record: StepRecord) -> Sequence[Event]:
        int(record.values.get("loss", 0.0))
        return super().update(record)


class NoState:
    def update(self, record: StepRecord) -> Sequence[Event]:
        return ()

    def finish(self) -> Sequence[Event]:
        return ()


@pytest.mark.parametrize(
    ("broken", "clause"),
    [
        (NoState, "protocol: NoState lacks state_dict, load_state_dict"),
        (DiesOnNan, "survives: .*ValueError"),
        (OwnKind, "events: unknown kind 'boom'"),
        (FromTheFuture, "events: at step"),
        (Remembers, "deterministic"),
        (FinishEnds, "finish"),
        (ForgetsItsState, "state: .* not in the state"),
        (StateIsNotJson, "state: state_dict is not plain JSON"),
        (Grows, "bounded"),
        (Sensitive, "silence on flat noise"),
        (LearnsFromTheSpike, "a second, equal spike is found again"),
        (BlindedByNan, "one NaN must not blind it"),
        (FiresOnNan, "one NaN must not make it fire on and on"),
        (AlarmsEveryStep, "a disturbance is one event"),
        (NeverAdapts, "it adapts to a new level"),
    ],
)
def test_each_broken_clause_is_named(broken: type, clause: str) -> None:
    with pytest.raises(ContractError, match=clause):
        check_detector(broken)


def test_the_factory_must_make_fresh_detectors() -> None:
    same = Spike()
    with pytest.raises(ContractError, match="protocol: the factory returned the same"):
        check_detector(lambda: same)


def test_the_error_is_an_assertion() -> None:
    assert issubclass(ContractError, AssertionError)


def test_a_detector_that_finds_no_spikes_is_not_held_to_the_scenarios() -> None:
    check_detector(lambda: Spike("accuracy"))
