from __future__ import annotations

import doctest
import json
import random

import foreshock.detect.edge as module
from foreshock.detect import Edge, scan
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.testing import check_detector


def stream(chis: list[float], every: int = 10, signal: str = "chi") -> list[StepRecord]:
    """Returns records at each step, a reading of chi at every tenth."""
    return [
        StepRecord(step, {"loss": 1.0} | ({signal: chis[step // every]} if step % every == 0 else {}))
        for step in range(len(chis) * every)
    ]


def found(chis: list[float], **settings: object) -> list[Event]:
    return scan(stream(chis, **settings), [Edge()])  # type: ignore[arg-type]


def test_it_keeps_the_contract_of_detectors() -> None:
    check_detector(Edge)
    assert doctest.testmod(module).failed == 0


def test_three_readings_in_a_row_raise_a_watch_from_the_first_of_them() -> None:
    [event] = found([0.5, 0.8, 0.9, 1.05, 1.2, 1.1, 1.3, *[0.7] * 9])
    assert (event.kind, event.signal) == ("watch", "chi")
    assert (event.onset, event.raised, event.peak, event.end) == (30, 50, 60, 60)
    assert event.height == 1.3 - 1.0
    assert event.data["readings"] == 4
    assert event.severity > 1


def test_single_crossings_raise_nothing() -> None:
    assert not found([0.9, 1.1, 1.2, 0.9, 1.1, 0.9, 1.3, 1.1, 0.95] * 10)
    assert not found([0.5] * 50)


def test_a_run_at_its_edge_is_one_event_and_an_open_one_ends_at_its_last_reading_above() -> None:
    noise = random.Random(0)
    [event] = found([0.7, 0.9, 1.02, 1.03, 1.02, *[1.0 + noise.uniform(-0.03, 0.05) for _ in range(200)], 1.01, 0.99])
    assert event.onset == 20
    assert event.end == 2050


def test_curvature_along_the_gradient_is_imminent() -> None:
    [event] = found([0.1, 0.4, 1.5, 2.0, 2.5, 0.2], signal="chi_gradient")
    assert (event.kind, event.signal) == ("imminent", "chi_gradient")


def test_a_formal_chi_and_readings_that_are_not_finite_raise_nothing() -> None:
    assert not scan([StepRecord(i, {"chi": 40.0, "chi_formal": 1.0}) for i in range(50)], [Edge()])
    assert not found([float("nan"), float("inf")] * 20)
    [event] = found([0.9, 1.1, float("nan"), 1.2, 1.3])
    assert event.raised == 40


def test_it_goes_on_from_its_state_wherever_it_is_cut() -> None:
    noise = random.Random(1)
    records = stream([1.0 + noise.uniform(-0.2, 0.15) for _ in range(120)], every=2)
    whole = scan(records, [Edge()])
    assert len(whole) > 2
    for cut in range(0, len(records), 17):
        first, second = Edge(), Edge()
        events = [event for record in records[:cut] for event in first.update(record)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        events += [event for record in records[cut:] for event in second.update(record)]
        events += second.finish()
        latest = {event.key: event for event in events}
        assert sorted(latest.values(), key=lambda event: event.raised) == whole
