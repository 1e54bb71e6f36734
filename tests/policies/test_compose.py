"""Policies made of policies."""

from __future__ import annotations

from dataclasses import replace

import pytest

from foreshock.errors import UsageError
from foreshock.policies import (
    Proceed,
    Scale,
    Sight,
    Skip,
    Stop,
    capped,
    clip_update,
    cooldown,
    first_of,
    floor,
    ling,
    only,
)
from tests.policies.scripts import answered, event, words

SPIKE = event(300)
NAN = event(300, "nonfinite")


def skip(events, actions):
    return Skip(reason="because") if events else Proceed()


def halve(events, actions):
    return Scale(factor=0.5) if events else Proceed()


def accept(events, actions):
    return Proceed(reason="known and accepted")


def test_the_first_that_does_not_proceed_is_the_answer():
    policy = first_of(floor(), ling(), clip_update())
    alarm = event(300, "imminent", "chi_gradient", chi=1.2)
    assert [each.kind for each in answered(policy, [(300, alarm), (301, SPIKE)])] == ["floor", "skip"]
    assert policy([], []).kind == "clip_update"


def test_an_acceptance_is_kept_only_where_nobody_acts():
    assert first_of(accept, skip)([SPIKE], []).kind == "skip"
    assert first_of(accept, skip)([], []).reason == "known and accepted"
    assert first_of(skip, skip)([], []) == Proceed()


def test_first_of_nothing_is_an_error():
    with pytest.raises(UsageError, match="first_of: no policy"):
        first_of()


def test_only_shows_what_it_is_told_to_and_keeps_the_rest_of_the_sight():
    seen = []

    def look(events, actions):
        seen.append(events)
        return Skip()

    burst, leap = event(300, "precursor", "grad_norm"), event(300, "precursor", "lr")
    sight = Sight((SPIKE, burst, leap), 300, {"loss": 9.0}, (10, 20), 2)
    policy = only(look, on=("precursor", "watch"), signal="grad_norm")
    assert policy(sight, []).kind == "skip"
    assert seen == [replace(sight, events=(burst,))]
    assert policy([SPIKE, leap], []) == Proceed()
    assert policy([burst], []).kind == "skip"
    with pytest.raises(UsageError, match="no event is called spikes"):
        only(skip, on="spikes")


def test_a_cap_counts_what_was_done_within_its_steps():
    policy = capped(skip, 3, 100)
    attempts = [(step, event(step)) for step in range(0, 200, 10)]
    answers = answered(policy, attempts)
    assert [each.step for each in answers if each.kind == "skip"] == [0, 10, 20, 100, 110, 120]
    assert "3 times within 100 steps" in answers[3].reason


def test_beyond_a_cap_the_other_policy_is_asked():
    last = capped(halve, 1, 100, otherwise=lambda events, actions: Stop(reason="enough"))
    answers = answered(capped(skip, 1, 100, otherwise=last), [(step, event(step)) for step in range(4)])
    assert words(answers) == ["skip requeue", "scale_update 0.5", "stop", "stop"]


def test_a_cap_counts_actions_that_bear_no_step_as_new():
    assert capped(skip, 2, 100)([SPIKE], [Skip(), Skip()]).kind == "proceed"


def test_a_cap_never_lets_what_is_not_finite_pass():
    answers = answered(capped(skip, 2, 100), [(300 + i, NAN) for i in range(3)])
    assert [each.kind for each in answers] == ["skip", "skip", "stop"]


def test_a_cooldown_lets_the_same_thing_wait_and_other_things_pass():
    attempts = [(step, event(step)) for step in range(0, 50, 5)]
    answers = answered(cooldown(skip, 20), attempts)
    assert [each.step for each in answers if each.kind == "skip"] == [0, 20, 40]
    assert "skip was done at step 0, and 20 steps" in answers[1].reason
    ladder = cooldown(lambda events, actions: Scale(factor=0.5) if actions else Skip(), 20)
    assert words(answered(ladder, attempts[:2])) == ["skip requeue", "scale_update 0.5"]


def test_a_cooldown_never_lets_what_is_not_finite_pass():
    assert {each.kind for each in answered(cooldown(skip, 20), [(300 + i, NAN) for i in range(5)])} == {"skip"}


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: capped(skip, -1, 10), "capped: most=-1"),
        (lambda: capped(skip, 1, 0), "within=0"),
        (lambda: cooldown(skip, -1), "cooldown: steps=-1"),
    ],
)
def test_senseless_settings_are_named(make, named):
    with pytest.raises(UsageError, match=named):
        make()
