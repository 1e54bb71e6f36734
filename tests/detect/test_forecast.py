from __future__ import annotations

import doctest
import json
import math
import random

import pytest

import foreshock.detect.forecast as module
from foreshock.detect import Forecast, scan
from foreshock.run.event import Event
from foreshock.run.record import StepRecord
from foreshock.testing import check_detector

CALM = [0.5] * 40


def stream(chis: list[float], every: int = 10, signal: str = "chi", **others: list[float]) -> list[StepRecord]:
    """Returns records at each step, a reading of chi, and of the other signals, at every tenth."""
    records = []
    for step in range(len(chis) * every):
        values = {"loss": 1.0}
        if step % every == 0:
            place = step // every
            values[signal] = chis[place]
            values |= {name: column[place] for name, column in others.items() if not math.isnan(column[place])}
        records.append(StepRecord(step, values))
    return records


def found(chis: list[float], **settings: object) -> list[Event]:
    return scan(stream(chis, **settings), [Forecast()])  # type: ignore[arg-type]


def alarms(events: list[Event]) -> list[Event]:
    return [event for event in events if event.kind != "transient"]


def test_it_keeps_the_contract_of_detectors() -> None:
    check_detector(Forecast)
    assert doctest.testmod(module).failed == 0


def test_three_readings_in_a_row_raise_a_watch_from_the_first_of_them() -> None:
    [event] = found([0.5, 0.8, 0.9, 1.05, 1.2, 1.1, 1.3, *CALM])
    assert (event.kind, event.signal) == ("watch", "chi")
    assert (event.onset, event.raised, event.peak, event.end) == (30, 50, 60, 60)
    assert event.height == 1.3 - 1.0
    assert event.data["readings"] == 4
    assert event.severity == event.height / event.data["scale"]


def test_short_crossings_are_labelled_transient_and_are_no_alarm() -> None:
    events = found([0.9, 1.1, 1.2, 0.9, 1.1, 0.9, 1.3, 1.1, 0.95, *CALM])
    assert not alarms(events)
    [event] = events
    assert event.kind == "transient"
    assert {key: event.data[key] for key in ("crossings", "short", "turning", "mild")} == {
        "crossings": 3, "short": 3, "turning": 0, "mild": 0
    }  # fmt: skip
    assert (event.onset, event.peak, event.data["value"]) == (10, 60, 1.3)
    assert not found([0.5] * 50)


def test_excursions_far_apart_are_events_of_their_own() -> None:
    events = found([0.9, 1.1, *CALM, 1.2, *CALM])
    assert [event.kind for event in events] == ["transient", "transient"]


def test_a_direction_that_turns_from_reading_to_reading_is_no_instability() -> None:
    chis = [0.9, *[1.2] * 30, *CALM]
    turning = found(chis, chi_overlap=[0.1] * len(chis))
    assert [event.kind for event in turning] == ["transient"]
    assert turning[0].data["turning"] == 1
    assert [event.kind for event in found(chis, chi_overlap=[0.97] * len(chis))] == ["watch"]
    swapped = [1.0, 1.0, 1.0, 0.1, *[0.99] * len(chis)][: len(chis)]  # once, at the third reading above
    [event] = found(chis, chi_overlap=swapped)
    assert (event.onset, event.raised) == (10, 50)


def test_beyond_all_noise_of_batches_no_direction_has_to_last() -> None:
    chis = [0.9, 9.0, 20.0, 50.0, *CALM]
    assert alarms(found(chis, chi_overlap=[0.1] * len(chis)))


def test_a_rise_that_nothing_bounds_is_raised_when_it_is_near() -> None:
    chis = [0.9, *[1.01] * 30, *CALM]
    far = found(chis, expected_rise_in=[400.0] * len(chis))
    assert [event.kind for event in far] == ["transient"]
    coming = [400.0 - 20 * i for i in range(len(chis))]
    [event] = found(chis, expected_rise_in=coming)
    assert (event.kind, event.raised) == ("watch", 150)


def test_an_excursion_that_limits_itself_raises_nothing_until_its_outlook_is_worse() -> None:
    chis = [0.9, *[1.05] * 20, *CALM]
    mild = found(chis, expected_rise=[1.05] * len(chis))
    assert [event.kind for event in mild] == ["transient"]
    assert mild[0].data["mild"] == 1
    worse = [1.05] * 10 + [2.5] * len(chis)
    [event] = found(chis, expected_rise=worse[: len(chis)])
    assert (event.kind, event.onset, event.raised, event.data["expected"]) == ("watch", 10, 100, 2.5)
    grown = [0.0] * 8 + [0.25] * len(chis)  # a quarter of the loss is unstable motion: no outlook counts any more
    [event] = found(chis, expected_rise=[1.05] * len(chis), chi_mode_loss=grown[: len(chis)])
    assert (event.kind, event.raised) == ("watch", 80)
    assert alarms(found(chis, expected_rise=[math.nan] * len(chis)))


def test_a_run_at_its_edge_is_one_event_and_an_open_one_ends_at_its_last_reading_above() -> None:
    noise = random.Random(0)
    chis = [0.7, 0.9, 1.02, 1.03, 1.02, *[1.0 + noise.uniform(-0.03, 0.05) for _ in range(200)], 1.01, 0.99]
    [event] = alarms(found(chis))
    assert event.onset == 20
    assert event.end == 2050


def test_curvature_along_the_gradient_is_imminent() -> None:
    [event] = found([0.1, 0.4, 1.5, 2.0, 2.5, *CALM], signal="chi_gradient")
    assert (event.kind, event.signal) == ("imminent", "chi_gradient")


def test_a_formal_chi_and_readings_that_are_not_finite_raise_nothing() -> None:
    assert not scan([StepRecord(i, {"chi": 40.0, "chi_formal": 1.0}) for i in range(50)], [Forecast()])
    assert not found([float("nan"), float("inf")] * 20)
    [event] = alarms(found([0.9, 1.1, float("nan"), 1.2, 1.3]))
    assert event.raised == 40


def spiky(seed: int, spikes: int = 3) -> list[StepRecord]:
    """Returns a run in which chi passes 1 fifty steps before each rise of the loss."""
    noise = random.Random(seed)
    records = []
    for step in range(400 * spikes):
        phase = step % 400
        chi = 0.7 + 0.3 * min(phase, 320) / 300 + (-0.2 if phase > 340 else 0.0)
        loss = 1.0 + (4.0 if 350 <= phase < 360 else 0.0) + noise.uniform(0, 0.02)
        values = {"loss": loss}
        if step % (10 if chi < 0.95 else 1) == 0:
            values |= {"chi": chi + noise.uniform(-2e-3, 2e-3), "chi_crossing": max(0.0, 300.0 - phase)}
        records.append(StepRecord(step, values))
    return records


def test_leads_are_counted_from_the_alarm_to_the_rise_of_the_loss() -> None:
    forecast = Forecast()
    events = scan(spiky(0), [forecast])
    watches = [event for event in events if event.kind == "watch"]
    assert len(watches) == 3
    for i, event in enumerate(watches):
        assert event.data["lead"] == 400 * i + 350 - event.raised
        assert 35 <= event.data["lead"] <= 50
    assert forecast.leads == tuple(event.data["lead"] for event in watches)
    assert watches[-1].data["leads"] == {"median": sorted(forecast.leads)[1], "spikes": 3}


def test_the_crossing_is_foretold_with_an_error_that_holds() -> None:
    watches = [event for seed in range(8) for event in scan(spiky(seed), [Forecast()]) if event.kind == "watch"]
    foretold = [(event.onset, event.data["crossing"]) for event in watches if "crossing" in event.data]
    assert len(foretold) >= 16
    for onset, crossing in foretold:
        assert crossing["at"] < onset - 10
        assert abs(onset - crossing["step"]) <= 2 * crossing["error"]
        assert crossing["error"] < crossing["step"] - crossing["at"]


@pytest.mark.parametrize("seed", [1, 2])
def test_it_goes_on_from_its_state_wherever_it_is_cut(seed: int) -> None:
    noise = random.Random(seed)
    hovering = stream([1.0 + noise.uniform(-0.2, 0.15) for _ in range(120)], every=2)
    spikes = [StepRecord(record.step + len(hovering), record.values) for record in spiky(seed, 2)]
    records = [*hovering, *spikes]
    whole = scan(records, [Forecast()])
    assert {event.kind for event in whole} == {"watch", "transient"}
    for cut in range(0, len(records), 37):
        first, second = Forecast(), Forecast()
        events = [event for record in records[:cut] for event in first.update(record)]
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        events += [event for record in records[cut:] for event in second.update(record)]
        events += second.finish()
        latest = {event.key: event for event in events}
        assert sorted(latest.values(), key=lambda event: (event.raised, event.onset, event.kind)) == whole
