"""What holds of every fold, on series nobody chose: no crash, resumable anywhere, blind to the unit of the loss."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from foreshock.detect import Detector, Divergence, Drift, NonFinite, Precursor, Spike, default_detectors, scan
from foreshock.run import Event, Run, StepRecord
from tests.detect.curves import brief, noisy, records, slope_noise, versions, with_

CLASSES = (NonFinite, Spike, Divergence, Drift, Precursor)

anything = st.floats(allow_nan=True, allow_infinity=True)
rows = st.lists(
    st.dictionaries(st.sampled_from(["loss", "grad_norm", "lr", "update_norm", "nonfinite", "skipped"]), anything),
    max_size=120,
)
# pieces of curves: levels held for a while, with noise that a hash of the position gives
pieces = st.lists(st.tuples(st.integers(1, 60), st.floats(0.01, 100.0)), min_size=1, max_size=8)


def curve(plan: list[tuple[int, float]]) -> list[float]:
    levels = [level for length, level in plan for _ in range(length)]
    return [level * (1.0 + 0.01 * math.sin(12.9898 * i * i)) for i, level in enumerate(levels)]


def text(events: list[Event]) -> list[str]:
    return [json.dumps(event.to_dict()) for event in events]


@given(rows)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_no_values_crash_any_detector(values: list[dict[str, float]]) -> None:
    stream = [StepRecord(3 * i, row) for i, row in enumerate(values)]
    for event in versions(stream):
        assert event.onset <= event.raised
        assert event.end is None or event.onset <= event.end
        json.dumps(event.to_dict())


@given(pieces, st.data())
@settings(max_examples=40, deadline=None, derandomize=True)
def test_saving_and_loading_anywhere_changes_nothing(plan: list[tuple[int, float]], data: st.DataObject) -> None:
    loss = curve(plan)
    stream = records(loss, grad_norm=[math.sqrt(value) for value in loss])
    cut = data.draw(st.integers(0, len(stream)))
    first, second = default_detectors(), default_detectors()
    events = [event for record in stream[:cut] for detector in first for event in detector.update(record)]
    for old, new in zip(first, second, strict=True):
        new.load_state_dict(json.loads(json.dumps(old.state_dict())))
    assert text(events + versions(stream[cut:], second)) == text(versions(stream))


@given(pieces, st.integers(-40, 40))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_unit_of_the_loss_does_not_matter(plan: list[tuple[int, float]], power: int) -> None:
    loss, factor = curve(plan), 2.0**power
    gradient = [math.sqrt(value) for value in loss]
    scaled = records([factor * value for value in loss], grad_norm=[factor * value for value in gradient])
    assert brief(scan(scaled)) == brief(scan(records(loss, grad_norm=gradient)))


@given(pieces, st.integers(1, 1000))
@settings(max_examples=40, deadline=None, derandomize=True)
def test_the_origin_of_a_signed_loss_does_not_matter(plan: list[tuple[int, float]], shift: int) -> None:
    loss = [round(1024 * value) / 1024 - 200.0 for value in curve(plan)]
    assert brief(scan(records([value - shift for value in loss]))) == brief(scan(records(loss)))


def everything() -> list[StepRecord]:
    bump = {310 + i: 1.5 * math.exp(-i / 4.0) for i in range(20)} | {450: 2.0, 500: math.nan}
    loss = with_(noisy(1200, lambda step: 2.0 + 0.6 * max(0, step - 600) / 300.0), bump)
    gradient = [value * (4.0 if 303 <= i < 310 else 1.0) for i, value in enumerate(slope_noise(1200))]
    return records(loss, grad_norm=gradient)


def test_scan_is_the_fold_a_live_monitor_runs() -> None:
    stream = everything()
    last = {event.key: event for event in versions(stream)}
    assert sorted(text(scan(stream))) == sorted(text(list(last.values())))
    assert {event.kind for event in last.values()} == {"nonfinite", "spike", "drift", "precursor"}


def test_scan_takes_a_run() -> None:
    stream = everything()
    columns = {name: [record.values[name] for record in stream] for name in ("loss", "grad_norm")}
    run = Run.from_arrays(columns | {"step": [10 * record.step for record in stream]})
    assert [event.raised for event in scan(run)] == [10 * event.raised for event in scan(stream)]


def test_scan_orders_events_and_ends_them() -> None:
    events = scan(everything())
    assert [event.raised for event in events] == sorted(event.raised for event in events)
    assert all(event.end is not None for event in events)


def test_step_that_stays_is_one_event_for_the_whole_set() -> None:
    events = scan(records(noisy(1500, lambda step: 2.0 if step < 500 else 2.6)))
    assert [(event.kind, event.data["width"]) for event in events] == [("spike", "wide")]


def test_slow_climb_of_a_fifth_is_a_drift_and_nothing_else() -> None:
    events = scan(records(noisy(3000, lambda step: 2.0 + 0.4 * min(1.0, max(0, step - 500) / 2000))))
    assert [event.kind for event in events] == ["drift"]


def test_scan_of_nothing_finds_nothing() -> None:
    assert scan([]) == []
    assert scan([StepRecord(0, {})]) == []


def test_scan_uses_the_detectors_it_is_given() -> None:
    assert {event.kind for event in scan(everything(), [NonFinite()])} == {"nonfinite"}


@pytest.mark.parametrize("kind", CLASSES)
def test_events_of_one_key_follow_one_another(kind: type[Detector]) -> None:
    last: dict[tuple[str, str, int], Event] = {}
    for event in versions(everything(), [kind()]):
        before = last.get(event.key)
        if before is None:
            assert event.end is None
        else:
            assert before.end is None
            assert event.onset == before.onset
            assert event.height >= before.height or math.isnan(event.height)
        last[event.key] = event


def test_state_stays_small() -> None:
    detectors = default_detectors()
    for record in records(noisy(3000), grad_norm=slope_noise(3000)):
        for detector in detectors:
            detector.update(record)
    assert sum(len(json.dumps(detector.state_dict())) for detector in detectors) < 40_000
