"""The alarm of the coming step: raised in time where the loss is going to climb, and silent where it is not."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest

from foreshock.detect.alarm import Alarm
from foreshock.run.event import KINDS, family


def raised(readings, start=100):
    """Returns what stands against each step."""
    alarm = Alarm()
    return [alarm.update(start + place, reading) for place, reading in enumerate(readings)]


def kinds(readings):
    return [event.kind if event else "" for event in raised(readings)]


CLIMBS = {"chi": 1.03, "expected_rise": 20.0, "expected_rise_in": 40.0, "chi_overlap": 0.99, "loss": 1.0}


def test_the_third_reading_above_the_edge_whose_loss_will_rise_is_imminent():
    assert kinds([{"chi": 0.98}, CLIMBS, CLIMBS, CLIMBS]) == ["", "", "", "imminent"]
    event = raised([CLIMBS] * 3)[-1]
    assert family(event) == "curvature"
    assert event.kind in KINDS
    assert (event.raised, event.data["chi"], event.data["expected"], event.data["readings"]) == (102, 1.03, 20.0, 3)


def test_two_readings_above_the_edge_are_noise():
    assert not any(kinds([CLIMBS, CLIMBS, {"chi": 0.99}] * 10))


def test_a_rise_that_limits_itself_is_only_watched():
    mild = CLIMBS | {"expected_rise": 1.2}
    assert set(kinds([mild] * 20)) == {"", "watch"}
    assert kinds([mild] * 5 + [CLIMBS])[-1] == "imminent"


def test_motion_that_is_a_fifth_of_the_loss_is_no_matter_of_outlooks():
    mild = CLIMBS | {"expected_rise": 1.2}
    assert kinds([mild | {"chi_mode_loss": 0.25}] * 3)[-1] == "imminent"
    assert kinds([mild | {"chi_mode_loss": 0.15}] * 3)[-1] == "watch"


def test_a_direction_that_turns_from_reading_to_reading_is_the_noise_of_batches():
    turning = [CLIMBS | {"chi": chi, "chi_overlap": 0.2} for chi in np.random.default_rng(0).uniform(1.0, 3.0, 200)]
    assert not any(kinds(turning))


def test_no_direction_has_to_last_far_beyond_the_edge():
    assert kinds([CLIMBS | {"chi": 9.0, "chi_overlap": 0.1}] * 3)[-1] == "imminent"


@pytest.mark.parametrize("alignment", ["alignment", "chi_alignment"])
def test_without_an_outlook_the_curvature_along_the_gradient_tells(alignment):
    beyond = {"chi": 1.1, "chi_gradient_sym": 1.05, alignment: 0.9}
    assert kinds([beyond] * 3) == ["", "", "imminent"]
    assert kinds([beyond | {"chi_gradient_sym": 0.95}] * 6)[-1] == "watch"
    assert kinds([beyond | {alignment: 0.3}] * 6)[-1] == "watch"
    assert kinds([{"chi": 1.1}] * 3 + [beyond] * 3) == ["", "", "watch", "watch", "watch", "imminent"]


def test_a_rise_that_nothing_bounds_counts_where_it_is_near():
    assert kinds([{"chi": 1.1, "expected_rise_in": 20.0}] * 3)[-1] == "imminent"
    assert kinds([{"chi": 1.1, "expected_rise_in": 900.0}] * 3)[-1] == "watch"


def test_a_formality_is_no_alarm():
    assert not any(kinds([CLIMBS | {"chi_formal": 1.0, "chi": 50.0}] * 10))


def test_steps_without_a_reading_neither_raise_nor_reset():
    nothing = {"loss": 1.0}
    assert kinds([CLIMBS, nothing, CLIMBS, nothing, CLIMBS, nothing, CLIMBS]) == [
        "", "", "", "", "imminent", "", "imminent"
    ]


def test_an_event_keeps_its_key_and_is_raised_anew_where_what_was_done_did_not_suffice():
    events = raised([CLIMBS | {"chi": 1.02 + 0.01 * n} for n in range(9)])
    assert [event.raised for event in events[2:]] == [102, 102, 102, 105, 105, 105, 108]
    assert [round(event.height, 2) for event in events[2:5]] == [0.04, 0.05, 0.06]
    assert events[4].peak == 104


def test_once_below_the_edge_the_next_excursion_is_another_cause():
    events = raised([CLIMBS] * 3 + [{"chi": 0.85}] * 2 + [CLIMBS] * 3)
    assert [event.raised if event else None for event in events] == [None, None, 102, None, None, None, None, 107]


@pytest.mark.parametrize("odd", [math.nan, math.inf, -math.inf])
def test_what_is_not_a_number_is_as_good_as_not_measured(odd):
    assert not any(kinds([CLIMBS | {"chi": odd}] * 5))
    told = {name: value for name, value in CLIMBS.items() if name != "expected_rise"}
    spoilt = [CLIMBS | {"expected_rise": odd, "chi_overlap": odd, "chi_mode_loss": odd}] * 3
    assert kinds(spoilt) == kinds([told] * 3)


def test_a_resumed_alarm_goes_on_as_if_it_had_not_stopped():
    rng = np.random.default_rng(3)
    readings = [
        {"chi": float(chi), "expected_rise": float(rise), "chi_overlap": float(overlap), "chi_gradient_sym": float(s),
         "alignment": 0.8}
        for chi, rise, overlap, s in zip(
            rng.uniform(0.97, 1.2, 300), rng.uniform(1.0, 2.0, 300), rng.uniform(0.4, 1.0, 300),
            rng.uniform(0.8, 1.2, 300), strict=True,
        )
    ]
    whole = raised(readings)
    assert {event.kind for event in whole if event} == {"watch", "imminent"}
    for cut in (1, 40, 41, 42, 150):
        first, second = Alarm(), Alarm()
        for place in range(cut):
            first.update(100 + place, readings[place])
        second.load_state_dict(json.loads(json.dumps(first.state_dict())))
        assert [second.update(100 + place, readings[place]) for place in range(cut, 300)] == whole[cut:]
