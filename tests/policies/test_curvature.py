"""Floors at the alarm; a learning rate that leapt is taken back, and let in little by little if it stays."""

from __future__ import annotations

import math
from itertools import pairwise

import pytest

from foreshock.errors import UsageError
from foreshock.policies import CutLr, Floor, Sight, floor
from tests.policies.scripts import answered, event, words

IMMINENT = event(300, "imminent", "chi_gradient", chi=1.25)
WATCH = event(300, "watch", "chi", chi=1.25)
LEAP = event(300, "precursor", "lr", factor=60.0)


def test_an_imminent_alarm_raises_the_floor():
    answer = answered(floor(0.8), [(300, IMMINENT)])[0]
    assert isinstance(answer, Floor)
    assert answer.kappa == 0.8
    assert "chi is 1.25" in answer.reason
    assert answer.cause == IMMINENT.key


def test_a_watch_is_acted_upon_where_it_is_asked_for():
    assert answered(floor(), [(300, WATCH)])[0].kind == "proceed"
    assert answered(floor(at="watch"), [(300, WATCH)])[0].kind == "floor"
    assert answered(floor(at="watch"), [(300, IMMINENT)])[0].kind == "floor"


def test_where_chi_of_this_very_step_is_below_the_edge_nothing_is_done():
    assert answered(floor(), [(300, IMMINENT)], values={"chi": 0.97})[0].kind == "proceed"
    assert answered(floor(), [(300, LEAP)], values={"chi": 0.97})[0].kind == "proceed"
    assert answered(floor(), [(300, IMMINENT)], values={"chi": math.nan})[0].kind == "floor"


def test_the_alarm_of_the_softmax_is_another_matter():
    alarm = event(300, "imminent", "softmax_sensitivity")
    assert answered(floor(), [(300, alarm)])[0].kind == "proceed"


def test_after_five_floors_in_a_row_the_learning_rate_of_one_step_is_cut_to_the_edge():
    answers = answered(floor(0.9), [(300 + i, IMMINENT) for i in range(12)])
    assert words(answers) == (["floor"] * 5 + ["cut_lr 0.72"]) * 2
    assert answers[5].steps == 1
    apart = answered(floor(0.9), [(300 + 2 * i, IMMINENT) for i in range(12)])
    assert {each.kind for each in apart} == {"floor"}


def test_a_learning_rate_that_leapt_is_taken_back_at_once():
    answer = answered(floor(), [(300, LEAP)])[0]
    assert isinstance(answer, CutLr)
    assert answer.factor == pytest.approx(1 / 60)
    assert answer.steps == 1
    assert "60-fold" in answer.reason
    told = event(300, "imminent", "chi_gradient", chi=40.0, factor=60.0)
    assert answered(floor(), [(300, told)])[0].factor == pytest.approx(1 / 60)


def test_of_a_leap_of_unknown_size_chi_tells_it():
    leap = event(300, "precursor", "lr")
    assert answered(floor(0.9), [(300, leap)], values={"chi": 9.0})[0].factor == pytest.approx(0.1)
    assert answered(floor(0.9), [(300, leap)])[0].factor == pytest.approx(0.5)


def test_a_leap_beside_an_alarm_is_answered_before_it():
    assert floor()(Sight((IMMINENT, LEAP), 300), []).kind == "cut_lr"


def test_a_leap_that_stays_is_let_in_after_fifty_steps_over_a_hundred_and_then_accepted():
    answers = answered(floor(), [(300 + i, LEAP) for i in range(160)])
    factors = [each.factor for each in answers[:150]]
    assert factors == sorted(factors)
    assert factors[:51] == pytest.approx([1 / 60] * 51)
    assert max(b / a for a, b in pairwise(factors)) < 1.05
    assert 0.95 < factors[-1] <= 1.0
    assert {each.kind for each in answers[150:]} == {"proceed"}
    assert all("taken for a setting" in each.reason for each in answers[150:])


def test_what_is_not_finite_is_refused():
    assert answered(floor(), [(300, event(300, "nonfinite", "loss"))])[0].kind == "skip"


@pytest.mark.parametrize("given", [{"kappa": 0.0}, {"kappa": 1.0}, {"kappa": math.nan}, {"at": "spike"}])
def test_senseless_settings_are_named(given):
    with pytest.raises(UsageError, match=f"floor: {next(iter(given))}="):
        floor(**given)
